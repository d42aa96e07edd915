"""A recipe on one network: which layers take which form, and the graph that comes of it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest
from ..graphs.compress import Bits, Scheme, compress, to_float16
from ..graphs.ir import save_ir
from ..graphs.token_merging import merge_tokens
from ..mapped import kept_small, let_go
from ..runtime.devices import core
from ..runtime.values import did_you_mean
from .calibration import Seen
from .fields import LAYER
from .layers import Layer, find_layers
from .quantize import quantize
from .ranges import Grid
from .recipe import ComponentRecipe, Mode

WEIGHTS: dict[Mode, Bits] = {"int8-weights": "int8", "int4": "int4", "nf4": "nf4"}
"""How weights are stored by each mode that has no `weights` of its own."""
NOTHING: Mapping[str, Grid] = {}


def scheme(recipe: ComponentRecipe) -> Scheme:
    """The form of a component's weights."""
    bits = WEIGHTS.get(recipe.mode, recipe.weights)
    return Scheme(bits, recipe.group_size, recipe.ratio, recipe.symmetric)


def check(networks: Mapping[str, Path], recipe: ComponentRecipe) -> None:
    """Raise InvalidRequest where a recipe means nothing for the networks (.xml, by component) it is for."""
    what = ", ".join(networks)
    layers = [layer for xml in networks.values() for layer in find_layers(core().read_model(xml))]
    names = [layer.name for layer in layers]
    for part in (*recipe.keep, *recipe.weights_only):
        pattern = part.removeprefix(LAYER)
        if part.startswith(LAYER) and not any(fnmatchcase(name, pattern) for name in names):
            like = f"its layers are named like {names[0]!r}" if names else "it has none large enough to gain"
            hint = did_you_mean(pattern, names).strip() or like
            raise InvalidRequest(f"[{what}] {part!r}: no layer has this name; {hint}")
    widths = {layer.constant.get_output_shape(0)[1] for layer in layers if not layer.convolution}
    four_bits = scheme(recipe)
    if four_bits.bits != "int8" and widths and not any(four_bits.group_of(width) for width in widths):
        raise InvalidRequest(
            f"[{what}] group_size {recipe.group_size}: divides no layer's width "
            f"({', '.join(map(str, sorted(widths)))}); choose a smaller one"
        )


def quantized(layers: list[Layer], recipe: ComponentRecipe) -> list[Layer]:
    """The layers whose weights and activations both take 8 bits."""
    if recipe.mode not in ("int8", "hybrid"):
        return []
    rest = _named(layers, (*recipe.keep, *recipe.weights_only))
    return [
        layer
        for layer in layers
        if not layer.vector and layer.name not in rest and (layer.convolution or recipe.mode == "int8")
    ]


def _named(layers: list[Layer], parts: Sequence[str]) -> set[str]:
    """The names of the layers that a recipe's list of parts means."""
    patterns = [part.removeprefix(LAYER) for part in parts if part.startswith(LAYER)]
    return {
        layer.name
        for layer in layers
        if layer.parts & set(parts) or any(fnmatchcase(layer.name, pattern) for pattern in patterns)
    }


def change(
    model: Any,
    recipe: ComponentRecipe,
    seen: Seen,
    further: Collection[str] = (),
    release: Callable[[], None] = lambda: None,
    trained: Mapping[str, Grid] = NOTHING,
) -> None:
    """Make a network, an openvino.Model, what a recipe wants, in place.

    seen: what its layers read, where the recipe takes samples. further: names of layers that stay in floating
    point besides those that the recipe keeps. release: called now and then, to give back pages of weights.
    trained: by layer, the grids of what it reads, where they were trained and not to be found by samples.
    """
    layers = find_layers(model)
    kept = _named(layers, recipe.keep) | set(further)
    if "embeddings" in recipe.keep:
        kept |= {op.get_friendly_name() for op in model.get_ops() if op.get_type_name() == "Gather"}
    power = _power(layers, seen) if recipe.scale_estimation else None
    both = [layer for layer in quantized(layers, recipe) if layer.name not in kept]
    quantize(both, seen, recipe.smooth, recipe.bias_correction, scheme(recipe), release, trained)
    stored = _named([layer for layer in layers if layer.convolution], recipe.weights_only)
    compress(model, scheme(recipe), release, kept=kept, convolutions=stored, power=power)
    to_float16(model, release)


def rewrite(
    source: Path,
    target: Path,
    recipe: ComponentRecipe,
    seen: Seen,
    further: Collection[str],
    trained: Mapping[str, Grid] = NOTHING,
) -> None:
    """Write the network `source` (an .xml) to `target` as a recipe wants it; see `change`.

    Tokens merge last: ranges of activations hold for means of tokens too.
    """
    model = core().read_model(source)
    with kept_small([source.with_suffix(".bin")]):
        if recipe.mode != "keep":
            change(model, recipe, seen, further, lambda: let_go([source.with_suffix(".bin")]), trained)
        if recipe.token_merging:
            merge_tokens(model, recipe.token_merging, recipe.merging_method)
        save_ir(model, target)


def _power(layers: list[Layer], seen: Seen) -> Mapping[str, Any]:
    return {layer.name: seen[layer.source].power for layer in layers if layer.source in seen}
