"""Skip-layer guidance: the denoiser without some of its blocks, by an edit of its graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..artifact import REMEDY, Artifact
from ..errors import ArtifactError, InvalidRequest
from ..graphs.residuals import BLOCK, residual_chains
from .devices import Device
from .networks import Edit, Network
from .values import number, whole

MOST_LAYERS = 1000


@dataclass(frozen=True)
class SkipLayers:
    """Guidance away from what the denoiser predicts without some of its blocks, as for SD3.5 Medium.

    layers: the blocks to skip, counted from 0. scale: added to the guided prediction is so many times what
    they change. start, stop: the steps with it are those strictly between these fractions of all steps.
    Raises InvalidRequest for values that make no sense.
    """

    layers: tuple[int, ...]
    scale: float = 2.8
    start: float = 0.01
    stop: float = 0.2

    def __post_init__(self) -> None:
        if not self.layers:
            raise InvalidRequest("skipped layers: none are given; name at least one, or leave them out")
        for layer in self.layers:
            whole("skipped layer", layer, 0, MOST_LAYERS)
        number("skip-layer scale", self.scale, -1000.0, 1000.0)
        if not 0.0 <= self.start < self.stop <= 1.0:
            raise InvalidRequest(
                f"skipped layers from {self.start!r} to {self.stop!r}: must be fractions of the steps, rising"
            )

    def at(self, step: int, steps: int) -> bool:
        """Whether step `step` of `steps` is guided this way."""
        return steps * self.start < step < steps * self.stop


class SkippingDenoiser:
    """The denoiser without some blocks as a network of its own, made when asked for; the last one is kept."""

    def __init__(self, artifact: Artifact, device: Device, merging: Edit | None = None) -> None:
        self._artifact = artifact
        self._device = device
        self._merging = merging
        self._layers: tuple[int, ...] = ()
        self._network: Network | None = None

    def check(self, skip: SkipLayers) -> None:
        """Raise InvalidRequest where the model has no such layers; nothing heavy."""
        family = self._artifact.family
        if family.component(family.denoiser).kind != "mmdit":
            raise InvalidRequest(
                f"skipped layers: only SD3's denoiser has them, but {self._artifact.manifest.name} is of the "
                f"family {family.name}; leave them out"
            )
        path = self._artifact.path / family.denoiser / "openvino_model.xml"
        try:
            graph = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from error
        _check_layers(skip.layers, {int(block) for block in BLOCK.findall(graph)})

    def without(self, skip: SkipLayers) -> Network:
        """Return the network that skips these layers, not loaded yet; raises InvalidRequest as check()."""
        if self._network is None or self._layers != skip.layers:
            self.check(skip)
            self.release()
            denoiser = self._artifact.family.denoiser
            edit = skip_layers(skip.layers).after(self._merging)
            self._network = Network(self._artifact, denoiser, self._device, edit)
            self._layers = skip.layers
        return self._network

    def release(self) -> None:
        """Let go of the compiled network."""
        if self._network is not None:
            self._network.release()


def skip_layers(layers: Sequence[int]) -> Edit:
    """Return the edit that takes blocks out of an MMDiT: what enters them is what leaves them.

    Its application raises InvalidRequest where the graph has no such block.
    """
    chosen = tuple(sorted(set(layers)))
    return Edit(f"without blocks {', '.join(map(str, chosen))}", partial(_bypass, chosen))


def _bypass(layers: tuple[int, ...], model: Any) -> None:
    chains = residual_chains(model)
    _check_layers(layers, {block for block, _ in chains})
    for (block, _), chain in chains.items():
        if block in layers:
            (entry, _), (_, leaving) = chain[0], chain[-1]
            for consumer in leaving.get_target_inputs():
                consumer.replace_source_output(entry.get_source_output())
    model.validate_nodes_and_infer_types()


def _check_layers(layers: Sequence[int], known: set[int]) -> None:
    for layer in layers:
        if layer not in known:
            last = max(known, default=-1)
            raise InvalidRequest(f"skipped layer {layer}: the model has layers 0 to {last}")
