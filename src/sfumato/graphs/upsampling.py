"""Upsampling and the convolution after it as one transposed convolution, which has 4/9 of the arithmetic.

Doubling by nearest neighbours gives a 3x3 convolution each value four times, so that its taps on equal values
add up: from the small picture the same result comes by a 4x4 kernel with stride 2.
"""

from typing import Any

import numpy as np
from openvino import opset13 as ops

from .constants import Floats, as_float32, weight_of

TAPS = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], np.float32)
"""What the taps of the 4-wide kernel are of the 3-wide one's, in each direction."""
LEAST_PRODUCTS = 10**9
"""Of a 3x3 convolution, for one picture; with fewer the integer kernel wins nothing (measured: it loses)."""
MOST_COARSER = 1.1
"""How much larger an activation's steps may become to be even on both sides of zero."""


def transpose_upsampling(model: Any, least_products: int = LEAST_PRODUCTS) -> int:
    """Replace each doubling that a 3x3 convolution in 8 bits reads, in place; returns how many.

    model: of static shapes. least_products: of the convolutions that are worth it.
    Weights are rounded to 8 bits anew, as sums of up to four do not fit; activations get a grid without zero
    point, which the CPU plugin (OpenVINO 2026.4) needs for an integer kernel.
    """
    found = 0
    for conv in [op for op in model.get_ordered_ops() if op.get_type_name() == "Convolution"]:
        rounding = conv.input_value(0).get_node()
        if rounding.get_type_name() != "FakeQuantize" or not _keeps_size(conv):
            continue
        doubling = rounding.input_value(0).get_node()
        limits = _even(rounding) if _doubles(doubling) else None
        weights = _int8_weights(conv) if limits else None
        if limits is None or weights is None:
            continue
        if weights.size * np.prod(conv.get_output_shape(0)[2:]) < least_products:
            continue
        small = ops.fake_quantize(doubling.input_value(0), *map(ops.constant, limits), 256)
        transposed = ops.convolution_backprop_data(
            small, _kernel(weights), strides=[2, 2], pads_begin=[1, 1], pads_end=[1, 1], dilations=[1, 1]
        )
        transposed.set_friendly_name(conv.get_friendly_name())
        for target in conv.output(0).get_target_inputs():
            target.replace_source_output(transposed.output(0))
        found += 1
    if found:
        model.validate_nodes_and_infer_types()
    return found


def _int8_weights(conv: Any) -> Floats | None:
    """[outputs, inputs, 3, 3], of a layer that computes in whole numbers."""
    scaled = conv.input_value(1).get_node()
    parts = [value.get_node() for value in scaled.input_values()]
    if scaled.get_type_name() != "Multiply" or [part.get_type_name() for part in parts] != [
        "Convert",
        "Constant",
    ]:
        return None
    integers = parts[0].input_value(0).get_node()
    shape = tuple(conv.input_value(1).get_partial_shape().to_shape())
    if integers.get_type_name() != "Constant" or shape[2:] != (3, 3):
        return None
    weights: Floats = as_float32(integers) * as_float32(parts[1])
    return weights


def _keeps_size(conv: Any) -> bool:
    names = ("strides", "dilations", "pads_begin", "pads_end")
    return all(list(conv.get_attributes()[name]) == [1, 1] for name in names)


def _doubles(op: Any) -> bool:
    """Whether every value comes twice in both directions."""
    if op.get_type_name() != "Interpolate":
        return False
    how = op.get_attributes()
    before, after = list(op.get_input_shape(0)), list(op.get_output_shape(0))
    nearest = (how["mode"], how["coordinate_transformation_mode"], how["nearest_mode"])
    return nearest == ("nearest", "asymmetric", "floor") and after == [
        *before[:2],
        *(2 * side for side in before[2:]),
    ]


def _even(rounding: Any) -> list[Floats] | None:
    """The limits of a FakeQuantize moved so that zero is in the middle of 256 levels; None if far from it."""
    if rounding.get_attributes()["levels"] != 256:
        return None
    constants = [weight_of(rounding, port) for port in range(1, 5)]
    if not all(constants):
        return None
    low, high, out_low, out_high = map(as_float32, constants)
    if out_low.size != 1 or (out_low >= 0).any() or (out_high <= 0).any():
        return None
    step = float((out_high - out_low).item()) / 255
    even = max(float(out_high.item()) / 127, -float(out_low.item()) / 128)
    if even > MOST_COARSER * step:
        return None
    scale = np.asarray((high - low) / (out_high - out_low), np.float32)
    limits = [np.full_like(out_low, -128 * even), np.full_like(out_high, 127 * even)]
    return [limits[0] * scale, limits[1] * scale, *limits]


def _kernel(weights: Floats) -> Any:
    """The transposed convolution's, [inputs, outputs, 4, 4], in 8 bits with a scale for each output."""
    wide = np.einsum("ah,oihw,bw->ioab", TAPS, weights, TAPS, optimize=True)
    step = np.abs(wide).max(axis=(0, 2, 3), keepdims=True) / 127
    step = np.where(step > 0, step, 1).astype(np.float32)
    integers = np.rint(wide / step).astype(np.int8)
    return ops.multiply(ops.convert(ops.constant(integers), "f32"), ops.constant(step))
