"""Which layers of a denoiser a recipe quantizes, and which of them read the same activation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.convert.components import export_of, release_memory, trace
from sfumato.errors import InvalidRequest
from sfumato.families import Family
from sfumato.optimize.apply import quantized, scheme
from sfumato.optimize.layers import Layer, find_layers
from sfumato.optimize.quantize import group_of, shared
from sfumato.optimize.recipe import ComponentRecipe, Recipe


@dataclass(frozen=True)
class Readers:
    """Layers that read one activation, by their names in the module.

    axis: of the activation's channels. groups: by layer, how many inputs share a scale of 4 bits, None for 8.
    """

    names: tuple[str, ...]
    axis: int
    groups: tuple[int | None, ...]


def denoiser_recipe(recipe: Recipe, family: Family) -> ComponentRecipe:
    """What a recipe does to the denoiser; InvalidRequest where it quantizes no activations there."""
    own = recipe.of(family.denoiser, family.component(family.denoiser).kind, True)
    if own.mode not in ("int8", "hybrid"):
        raise InvalidRequest(
            f"recipe {recipe.name!r}: leaves the {family.denoiser}'s activations in floating point (mode "
            f"{own.mode!r}), so there is nothing to train for; choose int8, int8-aggressive, w4a8 or hybrid"
        )
    if own.mode == "int8" and (own.weights == "nf4" or (own.weights == "int4" and own.symmetric)):
        raise InvalidRequest(
            f"recipe {recipe.name!r}: training rounds weights to int8, or to int4 with a zero point; leave "
            "out nf4 and symmetric"
        )
    return own


def find_readers(family: Family, denoiser: Any, recipe: ComponentRecipe) -> list[Readers]:
    """The layers that the recipe quantizes, by what they read, found in the graph that conversion makes."""
    model = trace(export_of(family.component(family.denoiser).kind, denoiser))
    stored = scheme(recipe)
    found = [
        Readers(
            tuple(module_name(layer) for layer in layers),
            layers[0].channel_axis,
            tuple(group_of(layer, stored) for layer in layers),
        )
        for layers in shared(quantized(find_layers(model), recipe)).values()
    ]
    del model
    release_memory()
    return found


def module_name(layer: Layer) -> str:
    """The module that a layer of a converted network was: `__module.unet.conv_in/...` is `conv_in`."""
    return layer.name.split("/")[0].removeprefix("__module.").partition(".")[2]


def by_module(layers: Sequence[Layer]) -> dict[str, str]:
    """Names of layers by the names of their modules."""
    return {module_name(layer): layer.name for layer in layers}
