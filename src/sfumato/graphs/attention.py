"""The self-attention of a denoiser over the tokens of a 2D grid, found by structure, not by name."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

SIDE = 16  # of the latents at which resolutions are compared; every network can take it
BARRIERS = {"Reshape", "Transpose", "Concat", "ScaledDotProductAttention", "ShapeOf"}


@dataclass(frozen=True, eq=False)
class SelfAttention:
    """One self-attention, with every place where its tokens come in and go out.

    tokens: the output [batch, tokens, channels] that queries, keys and values are made of, on a grid.
    grid: the output [batch, channels, height, width] that was flattened to tokens.
    queries, keys, values: the MatMul of each. out: the last operation of the output's projection.
    slices: where joint attention's output is split into picture and text.
    block: the normalization before it, which all attentions of a block share.
    """

    tokens: Any
    grid: Any
    queries: Any
    keys: Any
    values: Any
    out: Any
    slices: tuple[Any, ...]
    block: Any


def find_self_attention(model: Any) -> list[SelfAttention]:
    """Every self-attention over a grid, in the order in which the network runs them.

    Of a block with two, the joint one comes first.
    """
    ordered = model.get_ordered_ops()
    finder = _Finder(ordered)
    found = [
        attention
        for op in ordered
        if op.get_type_name() == "ScaledDotProductAttention"
        and (attention := finder.self_attention(op)) is not None
    ]
    rank = {op: number for number, op in enumerate(ordered)}
    return sorted(found, key=lambda attention: (rank[attention.block], not attention.slices))


def token_counts(model: Any, attentions: list[SelfAttention]) -> list[int]:
    """How many tokens each has for latents of SIDE x SIDE."""
    measured = model.clone()
    latents = next(port for port in measured.inputs if port.get_partial_shape().rank == 4)
    channels = latents.get_partial_shape()[1].get_length()
    measured.reshape({latents: [1, channels, SIDE, SIDE]})
    nodes = {node.get_friendly_name(): node for node in measured.get_ops()}
    counts = []
    for attention in attentions:
        node = nodes[attention.grid.get_node().get_friendly_name()]
        sides = list(node.get_output_partial_shape(attention.grid.get_index()))[2:]
        counts.append(int(np.prod([side.get_length() for side in sides])))
    return counts


def quantizers(layer: Any) -> list[Any]:
    """What lies before a layer because it is quantized, from its input upwards.

    A FakeQuantize, and the multiplication by constants with which SmoothQuant evens out its channels.
    """
    node = layer.input_value(0).get_node()
    if node.get_type_name() != "FakeQuantize":
        return []
    before = node.input_value(0).get_node()
    smooth = before.get_type_name() == "Multiply" and _is_constant(before.input_value(1))
    return [node, before] if smooth else [node]


class _Finder:
    """What is known of every operation of a graph, and the search for attention in it."""

    def __init__(self, ordered: list[Any]) -> None:
        self.constants: set[Any] = set()
        self.grids: dict[Any, Any] = {}
        for op in ordered:
            before = [value.get_node() for value in op.input_values()]
            if op.get_type_name() == "Constant" or (before and self.constants.issuperset(before)):
                self.constants.add(op)
            elif (grid := _flattened(op)) is not None:
                self.grids[op] = grid
            elif (above := self._tokens_before(op, before)) is not None:
                self.grids[op] = above

    def _tokens_before(self, op: Any, before: list[Any]) -> Any:
        """The grid of the tokens that an operation works on, or None.

        Tokens keep their order from where a picture was flattened to where they are shaped otherwise, so that
        the text's, which meet them in an attention only, are not among them.
        """
        if op.get_type_name() in BARRIERS or not op.get_output_size() or _rank(op) != 3:
            return None
        return next((self.grids[node] for node in before if node in self.grids), None)

    def self_attention(self, op: Any) -> SelfAttention | None:
        """The attention around a ScaledDotProductAttention, if it is one of a grid's tokens to themselves."""
        layers = []
        for value in list(op.input_values())[:3]:
            near = [layer for layer in self._layers_before(value.get_node()) if self._on_grid(layer)]
            if len(near) != 1:
                return None
            layers.append(near[0])
        sources = {_place(_tokens(layer)) for layer in layers}
        out, slices = self._projection(op)
        if len(sources) != 1 or out is None:
            return None
        tokens = _tokens(layers[0])
        grid, block = self.grids[tokens.get_node()], self._norm(tokens.get_node())
        queries, keys, values = layers
        return SelfAttention(tokens, grid, queries, keys, values, out, slices, block)

    def _is_layer(self, node: Any) -> bool:
        """Whether a node is a linear layer: a product with constant weights."""
        return node.get_type_name() == "MatMul" and node.input_value(1).get_node() in self.constants

    def _on_grid(self, layer: Any) -> bool:
        return _tokens(layer).get_node() in self.grids

    def _layers_before(self, node: Any) -> Iterator[Any]:
        """The nearest linear layers before a node."""
        waiting, seen = [node], {node}
        while waiting:
            node = waiting.pop()
            if self._is_layer(node):
                yield node
                continue
            for value in node.input_values():
                before = value.get_node()
                if (
                    before not in seen
                    and before not in self.constants
                    and before.get_type_name() != "ShapeOf"
                ):
                    seen.add(before)
                    waiting.append(before)

    def _projection(self, attention: Any) -> tuple[Any, tuple[Any, ...]]:
        """The last operation of the picture's output projection, and where the output was split before it."""
        slices: list[Any] = []
        found, waiting = None, [attention]
        while waiting:
            for user in _users(waiting.pop()):
                if user.get_type_name() == "Slice":
                    slices.append(user)
                if self._is_layer(user):
                    found = user
                elif user.get_type_name() != "ShapeOf" and not _of_text(user):
                    waiting.append(user)
        return (None if found is None else self._biased(found)), tuple(slices)

    def _biased(self, node: Any) -> Any:
        """The last of the additions of constants to a layer's output."""
        while True:
            users = _users(node)
            if len(users) != 1 or users[0].get_type_name() != "Add":
                return node
            if not any(value.get_node() in self.constants for value in users[0].input_values()):
                return node
            node = users[0]

    def _norm(self, node: Any) -> Any:
        """The normalization that tokens come from."""
        while node.get_type_name() != "MVN":
            before = [value.get_node() for value in node.input_values() if value.get_node() in self.grids]
            if not before:
                return node
            node = before[0]
        return node


def _tokens(layer: Any) -> Any:
    """The output that a layer's input was quantized from."""
    return (quantizers(layer) or [layer])[-1].input_value(0)


def _place(output: Any) -> tuple[str, int]:
    return output.get_node().get_friendly_name(), output.get_index()


def _rank(node: Any) -> Any:
    return node.get_output_partial_shape(0).rank


def _users(node: Any) -> list[Any]:
    return [port.get_node() for output in node.outputs() for port in output.get_target_inputs()]


def _is_constant(output: Any) -> bool:
    return bool(output.get_node().get_type_name() in ("Constant", "Convert"))


def _of_text(node: Any) -> bool:
    """Whether a node takes the later tokens of a joint attention."""
    if node.get_type_name() != "Slice":
        return False
    start = node.input_value(1).get_node()
    return bool(start.get_type_name() != "Constant" or np.any(start.data))


def _flattened(op: Any) -> Any:
    """The picture [batch, channels, height, width] that an operation makes tokens of, or None."""
    if op.get_type_name() not in ("Reshape", "Transpose") or _rank(op) != 3:
        return None
    before = op.input_value(0).get_node()
    flat = op.get_type_name() == "Reshape" and before.get_type_name() == "Transpose"
    if flat and _order(before) == [0, 2, 3, 1]:
        return before.input_value(0)
    flat = op.get_type_name() == "Transpose" and before.get_type_name() == "Reshape"
    if flat and _order(op) == [0, 2, 1] and before.input_value(0).get_partial_shape().rank == 4:
        return before.input_value(0)
    return None


def _order(transpose: Any) -> list[int]:
    constant = transpose.input_value(1).get_node()
    return [int(axis) for axis in constant.data] if constant.get_type_name() == "Constant" else []
