"""Weights and activations in 8 bits: FakeQuantize before a layer, whole numbers in it (W8A8).

OpenVINO's plugins turn the pair into an integer convolution or matrix product. A FakeQuantize whose input
range differs by channel and whose output range does not divides by the channels' scales at no cost.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import dropwhile
from typing import Any

import numpy as np
from openvino import opset13 as ops

from ..graphs.compress import Scheme
from ..graphs.constants import Floats, as_float32, weight_of
from ..graphs.four_bits import restored as restored_from_four
from .layers import Layer, Source
from .observe import Statistics
from .ranges import Grid, Smooth, choose, quantize_weights


def quantize(
    layers: Sequence[Layer],
    seen: Mapping[Source, Statistics],
    smooth: Smooth,
    bias_correction: bool,
    scheme: Scheme,
    let_go: Callable[[], None],
    trained: Mapping[str, Grid],
) -> None:
    """Quantize these layers of one graph in place, each activation once for all that read it.

    scheme: how linear layers' weights are stored; where it has 4 bits for one, its weights stay floating
    point here, scaled, for `graphs.compress`. trained: by layer, the grid that training found, instead of one
    chosen by what was seen; then biases stay as they were trained.
    let_go: called after each, to give back the pages that weights were read through.
    """
    for source, group in shared(layers).items():
        weights = [layer.weights() for layer in group]
        grid = trained.get(group[0].name) or choose(seen[source], weights, smooth)
        rounded = _fake_quantize(group[0], grid)
        for layer, matrix in zip(group, weights, strict=True):
            restored = _replace_weights(layer, matrix * grid.scales, scheme)
            layer.node.input(0).replace_source_output(rounded.output(0))
            if bias_correction and layer.name not in trained:
                exact = matrix - restored / grid.scales
                _add_to_output(layer, exact.sum(1) @ seen[source].mean)
        let_go()


def shared(layers: Sequence[Layer]) -> dict[Source, list[Layer]]:
    """The layers by the activation that they read."""
    readers: dict[Source, list[Layer]] = {}
    for layer in layers:
        readers.setdefault(layer.source, []).append(layer)
    return readers


def group_of(layer: Layer, scheme: Scheme) -> int | None:
    """How many inputs of a layer share a scale in 4 bits; None where its weights take 8."""
    width = int(layer.constant.get_output_shape(0)[1])
    return None if layer.convolution or scheme.bits == "int8" else scheme.group_of(width)


def _fake_quantize(layer: Layer, grid: Grid) -> Any:
    port = layer.node.input_value(0)
    rank = port.get_partial_shape().rank.get_length()
    one = np.ones([1] * rank, np.float32)
    shape = [1] * rank
    shape[layer.channel_axis] = -1
    scales = grid.scales.reshape(shape)
    if (scales == 1).all():
        scales = one
    elif not layer.convolution:
        # OpenVINO 2026.4 refuses a FakeQuantize that differs along the last of three axes.
        port, scales = ops.multiply(port, ops.constant(1 / scales)), one
    limits = [scales * grid.low, scales * grid.high, one * grid.low, one * grid.high]
    return ops.fake_quantize(port, *(ops.constant(np.asarray(each, np.float32)) for each in limits), 256)


def _replace_weights(layer: Layer, weights: Floats, scheme: Scheme) -> Floats:
    """Give a layer these weights ([outputs, taps, inputs]); returns what they are once stored."""
    group = group_of(layer, scheme)
    if group is not None:
        matrix = np.ascontiguousarray(weights[:, 0])
        layer.node.input(1).replace_source_output(ops.constant(matrix).output(0))
        return restored_from_four(matrix, scheme, group)[:, None]
    integers, steps = quantize_weights(weights)
    shape = tuple(layer.constant.get_output_shape(0))
    stored = integers.astype(np.int8).transpose(0, 2, 1).reshape(shape)
    scale = steps.reshape(-1, *[1] * (len(shape) - 1))
    expanded = ops.multiply(
        ops.convert(ops.constant(np.ascontiguousarray(stored)), "f32"), ops.constant(scale)
    )
    layer.node.input(1).replace_source_output(expanded.output(0))
    return np.asarray(integers * steps, np.float32)


def _add_to_output(layer: Layer, offset: Floats) -> None:
    """Add [outputs] to what a layer gives: to its bias where it has one, else as a bias."""
    rank = layer.node.get_output_partial_shape(0).rank.get_length()
    shape = [1, -1, *[1] * (rank - 2)] if layer.convolution else [*[1] * (rank - 1), -1]
    correction = np.asarray(offset, np.float32).reshape(shape)
    targets = list(layer.node.output(0).get_target_inputs())
    if len(targets) == 1 and targets[0].get_node().get_type_name() == "Add":
        add = targets[0].get_node()
        constant = weight_of(add, 1 - targets[0].get_index())
        if constant is not None and _own_axes(constant.get_output_shape(0)) == _own_axes(correction.shape):
            moved = ops.constant(as_float32(constant).reshape(correction.shape) + correction)
            add.input(1 - targets[0].get_index()).replace_source_output(moved.output(0))
            return
    added = ops.add(layer.node.output(0), ops.constant(correction))
    for target in targets:
        target.replace_source_output(added.output(0))


def _own_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without the axes of 1 before it, which broadcasting adds."""
    return tuple(dropwhile(lambda length: length == 1, shape))
