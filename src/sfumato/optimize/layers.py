"""The layers of a network that have weights, and the parts they play, found by structure, not by name."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ..graphs.constants import SMALLEST, Floats, as_float32, weight_of

Part = Literal["first_convolution", "last_projection", "time_embedding", "modulation", "skip_connections"]
Source = tuple[str, int]
"""An activation: the friendly name of the operation that gives it, and the number of its output."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or a linear layer (a MatMul with constant weights), in a graph that was read.

    parts: the roles by which a recipe can name it.
    """

    node: Any
    constant: Any
    parts: frozenset[Part]

    @property
    def name(self) -> str:
        return str(self.node.get_friendly_name())

    @property
    def convolution(self) -> bool:
        return bool(self.node.get_type_name() == "Convolution")

    @property
    def vector(self) -> bool:
        """Whether it works on one vector for a picture: time and pooled embeddings, adaptive norms."""
        return _on_vectors(self.node)

    @cached_property
    def source(self) -> Source:
        port = self.node.input_value(0)
        return port.get_node().get_friendly_name(), port.get_index()

    @property
    def channel_axis(self) -> int:
        """The axis of its input that the weights reduce."""
        if self.convolution:
            return 1
        rank = int(self.node.input_value(0).get_partial_shape().rank.get_length())
        return rank - 2 if self.node.get_attributes()["transpose_a"] else rank - 1

    def weights(self) -> Floats:
        """[outputs, taps, inputs] float32: linear layers have one tap, convolutions one a kernel position."""
        values = as_float32(self.constant)
        flat = values.reshape(*values.shape[:2], -1)
        return np.ascontiguousarray(flat.transpose(0, 2, 1))


def find_layers(model: Any) -> list[Layer]:
    """Every layer with SMALLEST weights or more, in the order of the graph."""
    ordered = model.get_ordered_ops()
    weighted = {op: constant for op in ordered if (constant := _weights(op)) is not None}
    before, after = _reach(ordered, weighted), _reach(ordered[::-1], weighted, backwards=True)
    return [
        Layer(op, constant, frozenset(_parts(op, before[op], after[op]))) for op, constant in weighted.items()
    ]


def _weights(op: Any) -> Any:
    """The constant of a layer's weights, None for what is no layer."""
    if op.get_type_name() not in ("Convolution", "MatMul"):
        return None
    constant = weight_of(op)
    if constant is None or np.prod(constant.get_output_shape(0)) < SMALLEST:
        return None
    if op.get_type_name() == "MatMul":
        matrix = len(constant.get_output_shape(0)) == 2 and op.get_attributes()["transpose_b"]
        return constant if matrix else None
    return constant


def _reach(ordered: list[Any], weighted: dict[Any, Any], backwards: bool = False) -> dict[Any, set[str]]:
    """For each operation, whether a weighted layer ("layer"), one on vectors ("vector"), lies before it."""
    found: dict[Any, set[str]] = {}
    for op in ordered:
        near = _consumers(op) if backwards else _producers(op)
        seen = set().union(*(found.get(other, set()) | _kind(other, weighted) for other in near))
        found[op] = seen
    return found


def _kind(op: Any, weighted: dict[Any, Any]) -> set[str]:
    if op not in weighted:
        return set()
    return {"layer", "vector"} if _on_vectors(op) else {"layer"}


def _on_vectors(op: Any) -> bool:
    return bool(op.input_value(0).get_partial_shape().rank.get_length() == 2)


def _producers(op: Any) -> list[Any]:
    return [value.get_node() for value in op.input_values()]


def _consumers(op: Any) -> list[Any]:
    return [target.get_node() for port in op.outputs() for target in port.get_target_inputs()]


def _parts(op: Any, before: set[str], after: set[str]) -> Iterator[Part]:
    if op.get_type_name() == "Convolution" and "layer" not in before:
        yield "first_convolution"
    if "layer" not in after:
        yield "last_projection"
    if _on_vectors(op):
        yield "time_embedding" if "vector" in after else "modulation"
    if _joins_channels(op):
        yield "skip_connections"


def _joins_channels(op: Any) -> bool:
    """Whether a layer reads activations that were joined by their channels (not by their tokens)."""
    before = op.input_value(0).get_node()
    if before.get_type_name() != "Concat":
        return False
    rank = before.get_output_partial_shape(0).rank.get_length()
    channels = 1 if op.get_type_name() == "Convolution" else rank - 1
    return bool(before.get_attributes()["axis"] % rank == channels)
