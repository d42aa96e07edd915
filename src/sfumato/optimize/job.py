"""What a recipe comes to for one model."""

from dataclasses import dataclass

from ..artifact import Artifact
from .recipe import ComponentRecipe, Recipe


@dataclass(frozen=True)
class Job:
    """What is done to which components of a model; those that a recipe keeps are not among them."""

    artifact: Artifact
    recipe: Recipe
    components: dict[str, ComponentRecipe]

    @property
    def sampled(self) -> list[str]:
        """The components whose recipe takes samples of what flows through them."""
        return [name for name, each in self.components.items() if each.needs_samples]
