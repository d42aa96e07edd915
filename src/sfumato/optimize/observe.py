"""What flows into the layers of a running network: ranges, means, a few rows, gathered in the graph itself.

Only these small figures leave the graph, so memory stays that of an ordinary run.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openvino import opset13 as ops

from ..artifact import Artifact
from ..families import Array
from ..graphs.constants import Floats
from ..runtime.devices import Device
from ..runtime.networks import Edit, Network, Shapes
from .layers import Source, find_layers

SUMMARIES = 4
"""Rows of a call's figures before those that were picked: low, high, mean, mean square."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of one activation by channel, float32 [channels]: its low, high, mean and mean square ("power").

    rows: [n, channels], some of the tokens or pixels themselves. calls: how many runs they come from.
    """

    low: Floats
    high: Floats
    mean: Floats
    power: Floats
    rows: Floats
    calls: int

    @classmethod
    def of_calls(cls, figures: Floats) -> "Statistics":
        """From what the graph gave: [calls, SUMMARIES + n, channels]."""
        low, high, mean, power = figures[:, :SUMMARIES].transpose(1, 0, 2)
        rows = figures[:, SUMMARIES:].reshape(-1, figures.shape[2])
        return cls(low.min(0), high.max(0), mean.mean(0), power.mean(0), rows, len(figures))

    @classmethod
    def together(cls, parts: "Iterable[Statistics]") -> "Statistics":
        """Of all the runs that the parts come from."""
        parts = list(parts)
        weights = [part.calls for part in parts]
        return cls(
            np.min([part.low for part in parts], axis=0),
            np.max([part.high for part in parts], axis=0),
            np.average([part.mean for part in parts], axis=0, weights=weights).astype(np.float32),
            np.average([part.power for part in parts], axis=0, weights=weights).astype(np.float32),
            np.concatenate([part.rows for part in parts]),
            sum(weights),
        )


class Observer(Network):
    """A network that notes at each run what its layers on tokens or pixels read.

    rows: how many tokens or pixels are kept of each activation at each run; the places are always the same.
    """

    def __init__(
        self, artifact: Artifact, name: str, device: Device, edit: Edit | None = None, *, rows: int
    ) -> None:
        self._sources: list[Source] = []
        self._rows = rows
        self._figures: dict[Source, list[Floats]] = {}

        def tapped(model: Any) -> None:
            if edit is not None:
                edit.apply(model)
            self._sources = tap(model, rows)

        super().__init__(artifact, name, replace(device, cached=False), Edit("observed", tapped))

    def __call__(self, inputs: Mapping[str, NDArray[Any]], outputs: Shapes) -> dict[str, Array]:
        self.load({name: array.shape for name, array in inputs.items()}, outputs)
        shape = (SUMMARIES + self._rows, -1)
        noted = {output_name(number): shape for number in range(len(self._sources))}
        results = super().__call__(inputs, {**outputs, **noted})
        for number, source in enumerate(self._sources):
            self._figures.setdefault(source, []).append(results[output_name(number)])
        return {name: results[name] for name in outputs}

    def taken(self) -> dict[Source, Statistics]:
        """What was noted since the last time this was asked."""
        figures, self._figures = self._figures, {}
        return {source: Statistics.of_calls(np.stack(each)) for source, each in figures.items()}


def output_name(number: int) -> str:
    """What the added output for activation `number` is called."""
    return f"observed.{number}"


def tap(model: Any, rows: int) -> list[Source]:
    """Add an output [SUMMARIES + rows, channels] for each activation that layers read, in place."""
    places = np.random.default_rng(0)
    readers = {layer.source: layer for layer in find_layers(model) if not layer.vector}
    own = list(model.get_results())
    for result in own:
        model.remove_result(result)
    for number, layer in enumerate(readers.values()):
        chosen = places.random(rows, np.float32)
        figures = _figures(layer.node.input_value(0), layer.channel_axis, chosen)
        figures.output(0).get_tensor().set_names({output_name(number)})
        model.add_results([ops.result(figures)])
    # Operations run in the order of the results: with the network's own first, all activations would have to
    # be kept until it is done (SD3 medium at 1024x1024: 11 GB instead of 5).
    model.add_results(own)
    model.validate_nodes_and_infer_types()
    return list(readers)


def _figures(port: Any, axis: int, places: Floats) -> Any:
    """The figures of an activation; rows are picked at `places`, shares of their number."""
    rank = port.get_partial_shape().rank.get_length()
    order = [*(other for other in range(rank) if other != axis), axis]
    first = np.array([0], np.int64)
    channels = ops.gather(ops.shape_of(port), np.array([axis], np.int64), np.int64(0))
    shape = ops.concat([ops.constant(np.array([-1], np.int64)), channels], 0)
    rows = ops.reshape(ops.transpose(port, np.array(order, np.int64)), shape, special_zero=False)
    number = ops.convert(ops.gather(ops.shape_of(rows), first, np.int64(0)), "f32")
    chosen = ops.convert(ops.floor(ops.multiply(ops.constant(places), number)), "i64")
    summaries = [
        ops.reduce_min(rows, first, True),
        ops.reduce_max(rows, first, True),
        ops.reduce_mean(rows, first, True),
        ops.reduce_mean(ops.multiply(rows, rows), first, True),
    ]
    return ops.concat([*summaries, ops.gather(rows, chosen, np.int64(0))], 0)
