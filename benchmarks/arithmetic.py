"""What a network computes and moves: multiply-adds and bytes, operation by operation, from its graph."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

MOVES = {"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Slice", "StridedSlice", "VariadicSplit", "Split"}
"""Operations whose values are those of their first input, in another order or fewer."""
SCALES = {"Convert", "Multiply", "Subtract", "Reshape"}
"""Operations that make floating-point weights of stored integers."""
BYTES = {"i4": 0.5, "u4": 0.5}


@dataclass(frozen=True)
class Work:
    """One operation: its multiply-adds, by the type of what they multiply, and the bytes that it moves.

    int8_macs: those whose factors are both quantized. weights: bytes as stored. activations: bytes of what it
    reads and writes besides, quantized values counted as one byte.
    """

    name: str
    kind: str
    int8_macs: int
    float_macs: int
    weights: float
    activations: float


def work_of(model: Any, float_bytes: int) -> list[Work]:
    """The operations of an openvino.Model of static shapes that take arithmetic or a pass of their own.

    float_bytes: of a value that is not quantized, as the device computes it.
    """
    found = []
    for node in model.get_ordered_ops():
        count = COUNTS.get(node.get_type_name())
        if count is not None and not _constant(node.input_value(0)):
            found.append(count(node, float_bytes))
    return found


def _convolution(node: Any, float_bytes: int) -> Work:
    """Every output value takes the weights of its output channel."""
    groups = node.get_type_name() == "GroupConvolution"
    each = prod(_shape(node.input_value(1))[2 if groups else 1 :])
    return _product(node, "convolution", _values(node.output(0)) * each, float_bytes)


def _matrix_product(node: Any, float_bytes: int) -> Work:
    """Of activations and weights; one of two activations is attention that was written out."""
    left = _shape(node.input_value(0))
    transposed = node.get_attributes()["transpose_a"] and len(left) > 1
    kind = "matrix product" if _constant(node.input_value(1)) else "attention"
    return _product(node, kind, _values(node.output(0)) * left[-2 if transposed else -1], float_bytes)


def _attention(node: Any, float_bytes: int) -> Work:
    """softmax(q k^T) v; the weights of the second product are made on the way and never quantized."""
    inputs = [node.input_value(index) for index in range(3)]
    queries, keys, values = map(_shape, inputs)
    pairs = prod(queries[:-1]) * keys[-2]
    first, second = pairs * queries[-1], pairs * values[-1]
    quantized = all(map(_quantized, inputs[:2]))
    return Work(
        node.get_friendly_name(),
        "attention",
        first if quantized else 0,
        second if quantized else first + second,
        0,
        _moved(inputs, node, float_bytes),
    )


def _normalization(node: Any, float_bytes: int) -> Work:
    moved = _moved([node.input_value(0)], node, float_bytes)
    return Work(node.get_friendly_name(), "normalization", 0, 0, 0, moved)


COUNTS: dict[str, Callable[[Any, int], Work]] = {
    "Convolution": _convolution,
    "GroupConvolution": _convolution,
    "MatMul": _matrix_product,
    "ScaledDotProductAttention": _attention,
    "GroupNormalization": _normalization,
    "MVN": _normalization,
}


def _product(node: Any, kind: str, macs: int, float_bytes: int) -> Work:
    inputs = [node.input_value(0), node.input_value(1)]
    quantized = all(map(_quantized, inputs))
    return Work(
        node.get_friendly_name(),
        kind,
        macs if quantized else 0,
        0 if quantized else macs,
        sum(map(_stored, filter(_constant, inputs))),
        _moved([each for each in inputs if not _constant(each)], node, float_bytes),
    )


def _moved(inputs: Iterable[Any], node: Any, float_bytes: int) -> int:
    """Bytes of the inputs and the output; what only quantizers read is written quantized."""
    read = sum(_values(each) * (1 if _quantized(each) else float_bytes) for each in inputs)
    readers = [target.get_node().get_type_name() for target in node.output(0).get_target_inputs()]
    quantized = readers and all(name == "FakeQuantize" for name in readers)
    return read + _values(node.output(0)) * (1 if quantized else float_bytes)


def _quantized(port: Any) -> bool:
    """Whether values come from a quantizer, or are weights that are stored as 8-bit integers."""
    if _constant(port):
        return any(each.get_element_type().get_type_name() in ("i8", "u8") for each in _constants(port))
    node = port.get_node()
    while node.get_type_name() in MOVES:
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "FakeQuantize")


def _constant(port: Any) -> bool:
    """Whether values follow from constants alone."""
    node = port.get_node()
    if node.get_type_name() == "Constant":
        return True
    made = node.get_type_name() in SCALES | MOVES | {"FakeQuantize"}
    return made and all(_constant(node.input_value(index)) for index in range(node.get_input_size()))


def _constants(port: Any) -> list[Any]:
    node = port.get_node()
    if node.get_type_name() == "Constant":
        return [node]
    return [each for index in range(node.get_input_size()) for each in _constants(node.input_value(index))]


def _stored(port: Any) -> float:
    """Bytes of weights, with their scales, as they are kept."""
    total = 0.0
    for each in _constants(port):
        kind = each.get_element_type()
        total += prod(each.get_output_shape(0)) * BYTES.get(kind.get_type_name(), kind.size)
    return total


def _shape(port: Any) -> list[int]:
    return list(port.get_shape())


def _values(port: Any) -> int:
    return prod(_shape(port))
