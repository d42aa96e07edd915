"""What a recipe comes to for one model."""

from dataclasses import dataclass

from ..artifact import Artifact
from ..manifest import Sampling
from .recipe import ComponentRecipe, Recipe


@dataclass(frozen=True)
class Job:
    """What is done to which components of a model; those that a recipe keeps are not among them.

    sampling: how the result samples unless a request says otherwise.
    """

    artifact: Artifact
    recipe: Recipe
    components: dict[str, ComponentRecipe]
    sampling: Sampling

    @property
    def fitting(self) -> int:
        """How many pictures the key steps are fitted to."""
        asked = self.recipe.sampling
        return 0 if asked is None or self.sampling.reuse == "off" else asked.fit

    @property
    def sampled(self) -> list[str]:
        """The components whose recipe takes samples of what flows through them."""
        return [name for name, each in self.components.items() if each.needs_samples]
