"""Weights in 8 or 4 bits while activations stay floating point: one matrix after the other, without data.

The graph is the one that OpenVINO's plugins keep compressed in memory: an integer constant, its conversion,
zero point and scale in front of a MatMul. Convolutions have no such kernel on processors (OpenVINO 2026.4
expands their weights to float32 when it loads them), so theirs stay in 16 bits.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

Weights = Literal["int8", "int4"]
Floats = NDArray[np.float32]
GROUP = 64  # divides every width of the published models; SD 1.5's 320 has no 128
SMALLEST = 4096  # elements of a constant below which nothing is gained


def compress(model: ov.Model, weights: Weights, let_go: Callable[[], None]) -> None:
    """Replace the weights of a model's MatMuls by compressed ones, in place.

    int8: symmetric, one scale for an output channel. int4: asymmetric, one scale and zero point for GROUP
    inputs; matrices with other widths and those on a vector for a picture (time embedding, adaptive norms;
    they are the sensitive ones) take int8.
    let_go: called after each matrix, to give back the pages that its source was read through.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        constant = weight_of(node)
        if constant is None or not node.get_attributes()["transpose_b"]:
            continue
        shape = constant.get_output_shape(0)
        if len(shape) != 2 or shape[0] * shape[1] < SMALLEST:
            continue
        vector = node.input_value(0).get_partial_shape().rank.get_length() == 2
        four_bits = weights == "int4" and not vector and shape[1] % GROUP == 0
        matrix = as_float32(constant)
        expanded = _int4(matrix) if four_bits else _int8(matrix)
        node.input(1).replace_source_output(ops.convert(expanded, "f32").output(0))
        let_go()


def to_float16(model: ov.Model, let_go: Callable[[], None] = lambda: None) -> None:
    """Store large float32 and all bfloat16 constants as float16, in place; let_go as in `compress`.

    Small ones stay float32: they take no room, and the frequencies of a timestep's embedding, multiplied by
    up to 1000, need their digits. Values beyond float16's range keep float32.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant":
            continue
        kind, size = node.get_output_element_type(0), math.prod(node.get_output_shape(0))
        if kind != ov.Type.bf16 and (kind != ov.Type.f32 or size < SMALLEST):
            continue
        values = as_float32(node)
        fits = size == 0 or np.abs(values).max() <= np.finfo(np.float16).max
        stored = ops.constant(values.astype(np.float16) if fits else values)
        replacement = ops.convert(stored, "f32") if fits and kind == ov.Type.f32 else stored
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(replacement.output(0))
        let_go()
    model.validate_nodes_and_infer_types()


def weight_of(node: Any) -> Any:
    """The constant behind a MatMul's second input, if there is one (under a conversion to float32)."""
    source = node.input_value(1).get_node()
    if source.get_type_name() == "Convert":
        source = source.input_value(0).get_node()
    return source if source.get_type_name() == "Constant" else None


def as_float32(constant: Any) -> Floats:
    """A constant's values as float32."""
    values: Floats
    if constant.get_output_element_type(0) == ov.Type.bf16:
        bits = constant.data.view(np.uint16).astype(np.uint32) << 16
        values = bits.view(np.float32).reshape(constant.get_output_shape(0))
    else:
        values = constant.data.astype(np.float32)
    return values


def quantize_int8(matrix: Floats) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Integers [outputs, inputs] in -127..127 and scales [outputs, 1]: matrix is about integers * scales."""
    scales = _scale(np.abs(matrix).max(axis=1, keepdims=True) / 127)
    integers = np.rint(matrix / scales.astype(np.float32)).clip(-127, 127).astype(np.int8)
    return integers, scales


def quantize_int4(matrix: Floats) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.uint8]]:
    """Integers [outputs, groups, GROUP] in 0..15, scales and zero points [outputs, groups, 1].

    matrix, in groups, is about (integers - zero points) * scales; zero is always exact.
    """
    groups = matrix.reshape(len(matrix), -1, GROUP)
    low = np.minimum(groups.min(axis=2, keepdims=True), 0)
    high = np.maximum(groups.max(axis=2, keepdims=True), 0)
    scales = _scale((high - low) / 15)
    wide = scales.astype(np.float32)
    zeros = np.rint(-low / wide).clip(0, 15)
    integers = np.rint(groups / wide + zeros).clip(0, 15).astype(np.uint8)
    return integers, scales, zeros.astype(np.uint8)


def _scale(values: Floats) -> NDArray[np.float16]:
    """Scales that float16 holds, none of them zero."""
    return np.maximum(values, np.finfo(np.float16).tiny).astype(np.float16)


def _int8(matrix: Floats) -> Any:
    integers, scales = quantize_int8(matrix)
    return ops.multiply(ops.convert(ops.constant(integers), "f16"), ops.constant(scales))


def _int4(matrix: Floats) -> Any:
    integers, scales, zeros = quantize_int4(matrix)
    shifted = ops.subtract(ops.convert(_packed(integers), "f16"), ops.convert(_packed(zeros), "f16"))
    groups = ops.multiply(shifted, ops.constant(scales))
    return ops.reshape(groups, np.array(matrix.shape, np.int64), special_zero=False)


def _packed(values: NDArray[np.uint8]) -> Any:
    """A constant of type u4 with these values, two in a byte, the first in the low half."""
    flat = values.reshape(-1)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    tensor = ov.Tensor(ov.Type.u4, ov.Shape(values.shape))
    tensor.data[:] = (flat[::2] | flat[1::2] << 4).reshape(tensor.data.shape)
    return ops.constant(tensor)
