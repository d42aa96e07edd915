"""Weights and activations in 8 bits: FakeQuantize before a layer, whole numbers in it (W8A8).

OpenVINO's plugins turn the pair into an integer convolution or matrix product. A FakeQuantize whose input
range differs by channel and whose output range does not divides by the channels' scales at no cost.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import dropwhile
from typing import Any

import numpy as np
from openvino import opset13 as ops

from ..graphs.constants import Floats, as_float32, weight_of
from .layers import Layer, Source
from .observe import Statistics
from .ranges import Grid, Smooth, choose, quantize_weights


def quantize(
    layers: Sequence[Layer],
    seen: Mapping[Source, Statistics],
    smooth: Smooth,
    bias_correction: bool,
    let_go: Callable[[], None],
) -> None:
    """Quantize these layers of one graph in place, each activation once for all that read it.

    let_go: called after each, to give back the pages that weights were read through.
    """
    readers: dict[Source, list[Layer]] = {}
    for layer in layers:
        readers.setdefault(layer.source, []).append(layer)
    for source, group in readers.items():
        weights = [layer.weights() for layer in group]
        grid = choose(seen[source], weights, smooth)
        rounded = _fake_quantize(group[0], grid)
        for layer, matrix in zip(group, weights, strict=True):
            restored = _replace_weights(layer, matrix * grid.scales)
            layer.node.input(0).replace_source_output(rounded.output(0))
            if bias_correction:
                exact = matrix - restored / grid.scales
                _add_to_output(layer, exact.sum(1) @ seen[source].mean)
        let_go()


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


def _replace_weights(layer: Layer, weights: Floats) -> Floats:
    """Give a layer these weights ([outputs, taps, inputs]) in 8 bits; returns what they now are."""
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
