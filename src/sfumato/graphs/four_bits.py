"""Matrices in 4 bits: whole numbers or normal floats, in groups of inputs that share a scale."""

from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from .constants import Floats, float16_scales

if TYPE_CHECKING:
    from .compress import Scheme

NORMAL = np.array(
    [
        *(-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
    ],
    np.float32,
)
"""The values of NF4 (Dettmers et al. 2023, arXiv 2305.14314, appendix E), as OpenVINO has them."""
CLIPS = np.linspace(1.0, 0.6, 9, dtype=np.float32)
"""Shares of the full range that are tried for a group's scale."""


def quantize_int4(
    groups: Floats, clip: float = 1.0
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.uint8]]:
    """Integers 0..15 like groups [outputs, groups, inputs], scales and zero points [outputs, groups, 1].

    groups is about (integers - zero points) * scales; zero is always exact. clip: share of the range that is
    covered.
    """
    low = np.minimum(groups.min(axis=2, keepdims=True), 0) * clip
    high = np.maximum(groups.max(axis=2, keepdims=True), 0) * clip
    scales = float16_scales((high - low) / 15)
    wide = scales.astype(np.float32)
    zeros = np.rint(-low / wide).clip(0, 15)
    integers = np.rint(groups / wide + zeros).clip(0, 15).astype(np.uint8)
    return integers, scales, zeros.astype(np.uint8)


def quantize_symmetric(groups: Floats, clip: float = 1.0) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Integers -8..7 like groups [outputs, groups, inputs], and scales [outputs, groups, 1]."""
    scales = float16_scales(np.abs(groups).max(axis=2, keepdims=True) * clip / 7.5)
    return np.rint(groups / scales.astype(np.float32)).clip(-8, 7).astype(np.int8), scales


def quantize_normal(groups: Floats, clip: float = 1.0) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Places in NORMAL like groups [outputs, groups, inputs], and scales [outputs, groups, 1]."""
    scales = float16_scales(np.abs(groups).max(axis=2, keepdims=True) * clip)
    borders = (NORMAL[1:] + NORMAL[:-1]) / 2
    return np.searchsorted(borders, groups / scales.astype(np.float32)).astype(np.uint8), scales


def restored(matrix: Floats, scheme: "Scheme", group: int | None, power: Floats | None = None) -> Floats:
    """The matrix as it comes back from 4 bits."""
    return _Stored(matrix, scheme, group, power).values().reshape(matrix.shape)


def expression(matrix: Floats, scheme: "Scheme", group: int | None, power: Floats | None = None) -> Any:
    """The graph, of float16, whose value is this matrix in 4 bits.

    power: mean square of each input, [inputs]; then every group's scale is the one of CLIPS that leaves the
    least error in the output.
    """
    stored = _Stored(matrix, scheme, group, power).graph()
    return ops.reshape(stored, np.array(matrix.shape, np.int64), special_zero=False)


class _Stored:
    """A matrix [outputs, inputs] in 4 bits."""

    def __init__(self, matrix: Floats, scheme: "Scheme", group: int | None, power: Floats | None) -> None:
        groups = matrix.reshape(len(matrix), -1, group or matrix.shape[1])
        self._kind = scheme.bits if scheme.bits == "nf4" else "i4" if scheme.symmetric else "u4"
        self._parts = self._quantized(groups, 1.0)
        if power is not None:
            self._fit(groups, power.reshape(1, *groups.shape[1:]))

    def values(self) -> Floats:
        """[outputs, groups, inputs] float32."""
        return self._values(self._parts)

    def graph(self) -> Any:
        numbers, scales, *zeros = self._parts
        wide = ops.convert(packed(numbers, _TYPES[self._kind]), "f16")
        if zeros:
            wide = ops.subtract(wide, ops.convert(packed(zeros[0], ov.Type.u4), "f16"))
        return ops.multiply(wide, ops.constant(scales))

    def _quantized(self, groups: Floats, clip: float) -> tuple[NDArray[Any], ...]:
        if self._kind == "u4":
            return quantize_int4(groups, clip)
        return quantize_symmetric(groups, clip) if self._kind == "i4" else quantize_normal(groups, clip)

    def _values(self, parts: tuple[NDArray[Any], ...]) -> Floats:
        numbers, scales, *zeros = parts
        wide = NORMAL[numbers] if self._kind == "nf4" else numbers.astype(np.float32)
        return np.asarray((wide - zeros[0] if zeros else wide) * scales.astype(np.float32), np.float32)

    def _fit(self, groups: Floats, power: Floats) -> None:
        """Take for each group the clip whose error, weighted by the inputs' power, is least."""
        least = self._error(self._parts, groups, power)
        for clip in CLIPS[1:]:
            parts = self._quantized(groups, float(clip))
            error = self._error(parts, groups, power)
            better = error < least
            least = np.where(better, error, least)
            self._parts = tuple(
                np.where(better, new, old) for new, old in zip(parts, self._parts, strict=True)
            )

    def _error(self, parts: tuple[NDArray[Any], ...], groups: Floats, power: Floats) -> Floats:
        error = np.square(self._values(parts) - groups) * power
        return np.asarray(error.sum(axis=2, keepdims=True), np.float32)


_TYPES = {"u4": ov.Type.u4, "i4": ov.Type.i4, "nf4": ov.Type.nf4}


def packed(values: NDArray[Any], kind: Any) -> Any:
    """A constant of a 4-bit type with these values, two in a byte, the first in the low half."""
    flat = values.reshape(-1).astype(np.uint8) & 15
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    tensor = ov.Tensor(kind, ov.Shape(values.shape))
    tensor.data[:] = (flat[::2] | flat[1::2] << 4).reshape(tensor.data.shape)
    return ops.constant(tensor)
