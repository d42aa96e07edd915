"""Weights in 8 or 4 bits while activations stay floating point: one matrix after the other.

The graph is the one that OpenVINO's plugins keep compressed in memory: an integer constant, its conversion,
zero point and scale in front of a MatMul or a Gather. Convolutions have no such kernel on processors
(OpenVINO 2026.4 expands their weights to float32 when it loads them), so theirs stay in 16 bits.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from . import four_bits
from .constants import SMALLEST, Floats, as_float32, float16_scales, weight_of

Bits = Literal["int8", "int4", "nf4"]
GROUP = 64  # divides every width of the published models; SD 1.5's 320 has no 128
SMALLEST_GROUP = 16


@dataclass(frozen=True)
class Scheme:
    """How weights are stored.

    bits: int8 is symmetric, one scale for an output channel. int4 has whole numbers, nf4 the quantiles of a
        normal distribution (Dettmers et al. 2023, arXiv 2305.14314), one scale for `group` inputs.
    group: a power of two, or -1 for all inputs of an output. ratio: share of the weights in 4 bits; the
        layers that lose most by them take 8. symmetric: int4 without a zero point.
    vectors: also matrices on a vector for a picture (time embedding, adaptive norms) take 4 bits rather than
        8. They are the sensitive ones, and a third of SD3's weights.
    """

    bits: Bits
    group: int = GROUP
    ratio: float = 1.0
    symmetric: bool = False
    vectors: bool = False

    def group_of(self, width: int) -> int | None:
        """The group for rows of this width: the largest divisor of both, None where that is too small."""
        group = width if self.group == -1 else math.gcd(width, self.group)
        return group if group >= SMALLEST_GROUP and group % 2 == 0 else None


def compress(
    model: ov.Model,
    scheme: Scheme,
    let_go: Callable[[], None],
    *,
    kept: Collection[str] = (),
    convolutions: Collection[str] = (),
    power: Mapping[str, Floats] | None = None,
) -> None:
    """Replace the weights of a model's MatMuls and embeddings by compressed ones, in place.

    Embeddings take 8 bits in every scheme, as do rows that no group divides.
    let_go: called after each matrix, to give back the pages that its source was read through.
    kept: names of operations whose weights stay. convolutions: names of those that are stored in 8 bits all
    the same, though a processor expands them when it loads them.
    power: by operation, the mean square of each input [inputs]; 4-bit scales then lessen the error of the
    output rather than that of the weights.
    """
    found = [op for op in model.get_ordered_ops() if _compressible(op, kept, convolutions)]
    in_four = {id(op) for op in _four_bit(found, scheme, let_go)}
    for op in found:
        port = 0 if op.get_type_name() == "Gather" else 1
        matrix = as_float32(weight_of(op, port))
        if id(op) in in_four:
            weight = (power or {}).get(op.get_friendly_name())
            expanded = four_bits.expression(matrix, scheme, scheme.group_of(matrix.shape[1]), weight)
        else:
            expanded = int8_expression(matrix)
        op.input(port).replace_source_output(ops.convert(expanded, "f32").output(0))
        let_go()


def _compressible(op: Any, kept: Collection[str], convolutions: Collection[str]) -> bool:
    """Whether an operation is a linear layer, an embedding whose rows are looked up, or one of the others."""
    kind, name = op.get_type_name(), op.get_friendly_name()
    if name in kept:
        return False
    if kind == "MatMul":
        constant = weight_of(op) if op.get_attributes()["transpose_b"] else None
    elif kind == "Convolution":
        return name in convolutions and weight_of(op) is not None
    else:
        constant = weight_of(op, 0) if kind == "Gather" else None
    if constant is None:
        return False
    shape = constant.get_output_shape(0)
    return len(shape) == 2 and math.prod(shape) >= SMALLEST and bool(constant.get_element_type().is_real())


def _four_bit(found: list[Any], scheme: Scheme, let_go: Callable[[], None]) -> Iterator[Any]:
    """The operations whose weights take 4 bits: those that lose least, up to the scheme's ratio."""
    if scheme.bits == "int8":
        return
    candidates = [op for op in found if _takes_four(op, scheme)]
    if scheme.ratio < 1:
        candidates.sort(key=lambda op: _loss(op, scheme, let_go))
    left = scheme.ratio * sum(map(_size, candidates))
    for op in candidates:
        left -= _size(op)
        if left >= -0.5:
            yield op


def _takes_four(op: Any, scheme: Scheme) -> bool:
    if op.get_type_name() != "MatMul":
        return False
    if op.input_value(0).get_partial_shape().rank.get_length() == 2 and not scheme.vectors:
        return False
    return scheme.group_of(weight_of(op).get_output_shape(0)[1]) is not None


def _size(op: Any) -> int:
    return math.prod(weight_of(op).get_output_shape(0))


def _loss(op: Any, scheme: Scheme, let_go: Callable[[], None]) -> float:
    """What 4 bits change in an operation's weights, as a share of them."""
    matrix = as_float32(weight_of(op))
    restored = four_bits.restored(matrix, scheme, scheme.group_of(matrix.shape[1]))
    let_go()
    return float(np.square(restored - matrix).sum() / max(np.square(matrix).sum(), 1e-30))


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


def quantize_int8(matrix: Floats) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Integers [outputs, inputs] in -127..127 and scales [outputs, 1]: matrix is about integers * scales."""
    scales = float16_scales(np.abs(matrix).max(axis=1, keepdims=True) / 127)
    integers = np.rint(matrix / scales.astype(np.float32)).clip(-127, 127).astype(np.int8)
    return integers, scales


def int8_expression(weights: Floats) -> Any:
    """The graph, of float16, whose value is these weights [outputs, ...] in 8 bits."""
    integers, scales = quantize_int8(weights.reshape(len(weights), -1))
    integers = integers.reshape(weights.shape)
    scales = scales.reshape(-1, *[1] * (weights.ndim - 1))
    return ops.multiply(ops.convert(ops.constant(integers), "f16"), ops.constant(scales))
