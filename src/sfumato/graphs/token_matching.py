"""Which tokens of a 2D grid merge, and the operations that merge, restore and pool them, as OpenVINO graphs.

Whole rows are gathered and added: OpenVINO 2026.4 has no fast kernel for one index an element, nor for
EmbeddingSegmentsSum (15 times slower here than ScatterNDUpdate on rows).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from openvino import opset15 as ops

from .attention import quantizers

WINDOW = 16  # cells: tokens look for their like within 32 x 32 tokens
TILES = ("12102130", "33002212", "03211300", "11121212", "00113332", "13023320", "00223030", "31233201")
TILE = np.array([[int(choice) for choice in row] for row in TILES])
"""Which token of each 2x2 cell is the destination, repeated over the grid: a fixed random choice (arXiv
2303.17604, section 4.1, found one better than the same corner everywhere)."""


@dataclass(frozen=True)
class Matching:
    """What becomes of each token of a batch of pictures, `count` of them being kept.

    order: [batch, tokens] all tokens, those that are kept first, and destinations before the others. rows:
    [batch, tokens] the kept token that stands for each; places: [batch, tokens, 2] its picture and row.
    share: [batch, count, 1] float, one over the number of tokens in each. zeros: [batch, count, channels].
    """

    count: Any
    order: Any
    rows: Any
    places: Any
    share: Any
    zeros: Any


class Counts:
    """A grid of tokens in whole numbers: its cells of 2x2 tokens, and the windows of cells.

    grid: the output [batch, channels, height, width] that was flattened to tokens.
    """

    def __init__(self, grid: Any) -> None:
        shape = ops.shape_of(grid, "i32")
        self.height, self.width = (ops.gather(shape, _int(axis), _int(0)) for axis in (2, 3))
        self.tokens = ops.multiply(self.height, self.width)
        self.rows, self.columns = (_ceil(side, 2) for side in (self.height, self.width))
        self.cells = ops.multiply(self.rows, self.columns)
        self.down, self.across = (_ceil(side, WINDOW) for side in (self.rows, self.columns))
        self.high, self.wide = _ceil(self.rows, self.down), _ceil(self.columns, self.across)
        self._zeros: Any = None

    def zeros(self, batch: Any, count: Any, channels: int) -> Any:
        """[batch, count, channels] float, the same operation every time, as it becomes a large constant."""
        if self._zeros is None:
            shape = _join(batch, count, _int(channels))
            self._zeros = ops.broadcast(ops.constant(np.float32(0)), shape)
        return self._zeros

    @cached_property
    def destinations(self) -> Any:
        """[rows, columns]: the token of each cell that others merge into."""
        row, column = _column(_range(self.rows)), _range(self.columns)
        place = ops.add(ops.multiply(_mod(row, 8), _int(8)), _mod(column, 8))
        choice = ops.gather(_int(TILE.ravel()), place, _int(0))
        y = _at_most(ops.add(_double(row), ops.divide(choice, _int(2))), self.height)
        x = _at_most(ops.add(_double(column), _mod(choice, 2)), self.width)
        return ops.add(ops.multiply(y, self.width), x)

    @cached_property
    def is_destination(self) -> Any:
        """[tokens] bool."""
        y, x = self._places()
        cell = ops.add(ops.multiply(ops.divide(y, _int(2)), self.columns), ops.divide(x, _int(2)))
        chosen = ops.gather(_flat(self.destinations), _flat(cell), _int(0))
        return ops.equal(chosen, _range(self.tokens))

    @cached_property
    def window_tokens(self) -> Any:
        """[windows, tokens in one]: every token of each window; at the edge, some several times."""
        return self._windowed(_double(self.high), _double(self.wide), self.height, self.width)

    @cached_property
    def window_destinations(self) -> Any:
        """[windows, cells in one]: the destinations of each window; at the edge, some several times."""
        cells = self._windowed(self.high, self.wide, self.rows, self.columns)
        return ops.gather(_flat(self.destinations), cells, _int(0))

    @cached_property
    def in_windows(self) -> Any:
        """[tokens]: where each token is in window_tokens."""
        y, x = self._places()
        high, wide = _double(self.high), _double(self.wide)
        window = ops.add(ops.multiply(ops.divide(y, high), self.across), ops.divide(x, wide))
        row = ops.add(ops.multiply(window, high), ops.floor_mod(y, high))
        return _flat(ops.add(ops.multiply(row, wide), ops.floor_mod(x, wide)))

    def _places(self) -> tuple[Any, Any]:
        """The row [height, 1] and column [width] of every token."""
        return _column(_range(self.height)), _range(self.width)

    def _windowed(self, high: Any, wide: Any, height: Any, width: Any) -> Any:
        """[windows, high * wide]: the places of a grid of height x width that each window covers."""
        y = ops.reshape(
            _range(ops.multiply(self.down, high)), _join(self.down, high, _int(1), _int(1)), False
        )
        x = ops.reshape(_range(ops.multiply(self.across, wide)), _join(self.across, wide), False)
        places = ops.add(ops.multiply(_at_most(y, height), width), _at_most(x, width))
        by_window = ops.transpose(places, _int([0, 2, 1, 3]))
        return ops.reshape(by_window, _join(ops.multiply(self.down, self.across), _int(-1)), False)


def match(tokens: Any, counts: Counts, thousandths: int) -> Matching:
    """Match tokens [batch, tokens, channels] by cosine similarity; the most similar ones merge.

    thousandths: how many of a thousand tokens, as far as there are tokens that are no destinations.
    """
    batch = _size(tokens, 0)
    score, best = _most_similar(tokens, counts)
    score = ops.select(counts.is_destination, ops.constant(np.float32(-2)), score)
    wanted = ops.divide(ops.multiply(counts.tokens, _int(thousandths)), _int(1000))
    count = ops.maximum(ops.subtract(counts.tokens, wanted), counts.cells)
    order = ops.topk(score, counts.tokens, -1, "min", "value", "i32").output(1)
    numbers = ops.broadcast(_range(counts.tokens), _join(batch, counts.tokens))
    position = ops.scatter_elements_update(order, order, numbers, _int(1))
    into = ops.gather_elements(position, best, 1)
    rows = ops.select(ops.less(position, count), position, into)
    ones = ops.constant(np.float32(1))
    sizes = ops.scatter_elements_update(
        ops.broadcast(ops.constant(np.float32(0)), _join(batch, count)),
        rows,
        ops.broadcast(ones, _join(batch, counts.tokens)),
        _int(1),
        reduction="sum",
    )
    picture = ops.broadcast(_column(_range(batch)), _join(batch, counts.tokens))
    places = ops.concat([_column(picture), _column(rows)], -1)
    zeros = counts.zeros(batch, count, tokens.get_partial_shape()[2].get_length())
    return Matching(count, order, rows, places, _column(ops.divide(ones, sizes)), zeros)


def merged(tokens: Any, matching: Matching) -> Any:
    """The mean of the tokens that merge: [batch, tokens, channels] to [batch, count, channels].

    The plugin adds in the type of what is added to. It leaves constants in float32 where it runs all else in
    bfloat16, whose sums stop growing at 256 equal tokens.
    """
    return ops.multiply(ops.scatter_nd_update(matching.zeros, matching.places, tokens, "sum"), matching.share)


def restored(tokens: Any, matching: Matching) -> Any:
    """Merged tokens back at the place of each that they stand for."""
    return ops.gather(tokens, matching.rows, _int(1), batch_dims=1)


def pooled(tokens: Any, counts: Counts, side: int) -> Any:
    """Means over areas of the grid; side: how many of a thousand rows, and of columns, are left."""
    channels = _int(tokens.get_partial_shape()[2].get_length())
    folded = ops.reshape(tokens, _join(_int(0), counts.height, _int(-1)), True)
    fewer = ops.matmul(_areas(counts.height, side), folded, False, False)
    fewer = ops.reshape(fewer, _join(_int(0), _int(0), counts.width, channels), True)
    fewer = ops.matmul(_areas(counts.width, side), fewer, False, False)
    return ops.reshape(fewer, _join(_int(0), _int(-1), channels), True)


def feed(layer: Any, tokens: Any) -> None:
    """Give a layer other tokens as its input, quantized as it was."""
    for node in reversed(quantizers(layer)):
        if node.get_type_name() == "Multiply":
            tokens = ops.multiply(tokens, node.input_value(1))
        else:
            ranges, given = list(node.input_values())[1:], node.get_attributes()
            tokens = ops.fake_quantize(tokens, *ranges, given["levels"], given["auto_broadcast"])
    layer.input(0).replace_source_output(tokens.output(0))


def split_at(slices: tuple[Any, ...], matching: Matching) -> None:
    """Let joint attention's output be split behind the merged tokens."""
    for node in slices:
        start = node.input_value(1).get_node()
        bound = node.input(2 if start.get_type_name() == "Constant" else 1)
        count = ops.convert(_list(matching.count), bound.get_element_type().to_string())
        bound.replace_source_output(count.output(0))


def _most_similar(tokens: Any, counts: Counts) -> tuple[Any, Any]:
    """[batch, tokens]: the highest cosine similarity to a destination in the same window, and which it is."""
    squares = ops.reduce_sum(ops.multiply(tokens, tokens), _int(-1), True)
    unit = ops.divide(tokens, ops.sqrt(ops.maximum(squares, ops.constant(np.float32(1e-12)))))
    sources = ops.gather(unit, counts.window_tokens, _int(1))
    targets = ops.gather(unit, counts.window_destinations, _int(1))
    best = ops.topk(ops.matmul(sources, targets, False, True), _int(1), -1, "max", "none", "i32")
    window = _column(_column(_range(ops.multiply(counts.down, counts.across))))
    first = ops.multiply(window, _size(counts.window_destinations, 1))
    token = ops.gather(_flat(counts.window_destinations), ops.add(best.output(1), first), _int(0))
    rows = _int([0, -1])
    return (
        ops.gather(ops.reshape(best.output(0), rows, True), counts.in_windows, _int(1)),
        ops.gather(ops.reshape(token, rows, True), counts.in_windows, _int(1)),
    )


def _areas(side: Any, thousandths: int) -> Any:
    """[fewer, side] float: the part of each of `fewer` equal areas that lies in each of `side` places."""
    wanted = ops.divide(ops.add(ops.multiply(side, _int(thousandths)), _int(500)), _int(1000))
    fewer = ops.maximum(wanted, _int(1))
    area, place = _column(_range(fewer)), _range(side)
    start = ops.maximum(ops.multiply(area, side), ops.multiply(place, fewer))
    stop = ops.minimum(
        ops.multiply(ops.add(area, _int(1)), side), ops.multiply(ops.add(place, _int(1)), fewer)
    )
    overlap = ops.maximum(ops.subtract(stop, start), _int(0))
    return ops.divide(ops.convert(overlap, "f32"), ops.convert(side, "f32"))


def _int(value: Any) -> Any:
    return ops.constant(np.asarray(value, np.int32))


def _range(stop: Any) -> Any:
    return ops.range(_int(0), stop, _int(1), "i32")


def _column(values: Any) -> Any:
    return ops.unsqueeze(values, _int(-1))


def _flat(values: Any) -> Any:
    return ops.reshape(values, _int([-1]), False)


def _list(value: Any) -> Any:
    return ops.unsqueeze(value, _int(0))


def _join(*values: Any) -> Any:
    return ops.concat([_list(value) for value in values], 0)


def _size(tokens: Any, axis: int) -> Any:
    return ops.gather(ops.shape_of(tokens, "i32"), _int(axis), _int(0))


def _ceil(value: Any, divisor: Any) -> Any:
    divisor = _int(divisor) if isinstance(divisor, int) else divisor
    return ops.divide(ops.subtract(ops.add(value, divisor), _int(1)), divisor)


def _double(value: Any) -> Any:
    return ops.multiply(value, _int(2))


def _mod(value: Any, divisor: int) -> Any:
    return ops.floor_mod(value, _int(divisor))


def _at_most(value: Any, count: Any) -> Any:
    """Places below a count: those beyond become the last one."""
    return ops.minimum(value, ops.subtract(count, _int(1)))
