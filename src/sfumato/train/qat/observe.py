"""What the layers of a denoiser read while it looks at noised training latents: where ranges begin."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.optimize.observe import Statistics
from sfumato.optimize.ranges import Grid, Smooth, choose
from sfumato.train.qat.layers import Readers

ROWS = 8
"""Tokens or pixels that are kept of an activation at each run, for choosing between grids."""


@torch.no_grad()
def first_grids(
    denoiser: nn.Module,
    readers: Sequence[Readers],
    smooth: Smooth,
    runs: Iterable[Callable[[], Any]],
) -> list[Grid]:
    """The grid of each activation, chosen by what was read while `runs` ran the denoiser."""
    modules = dict(denoiser.named_modules())
    figures: list[list[np.ndarray]] = [[] for _ in readers]
    hooks = [
        modules[each.names[0]].register_forward_pre_hook(_noting(noted, each.axis))
        for each, noted in zip(readers, figures, strict=True)
    ]
    try:
        for run in runs:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    grids = []
    for each, noted in zip(readers, figures, strict=True):
        weights = [_weights(modules[name]) for name in each.names]
        grids.append(choose(Statistics.of_calls(np.stack(noted)), weights, smooth))
        noted.clear()
    return grids


def _noting(noted: list[np.ndarray], axis: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    places = np.random.default_rng(0)

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].detach().float().movedim(axis, -1).flatten(0, -2)
        picked = torch.from_numpy(places.integers(len(rows), size=ROWS)).to(rows.device)
        summaries = rows.amin(0), rows.amax(0), rows.mean(0), rows.square().mean(0)
        noted.append(torch.cat([torch.stack(summaries), rows[picked]]).cpu().numpy())

    return note


def _weights(layer: Any) -> np.ndarray:
    """[outputs, taps, inputs] float32, as the graph's layers give theirs."""
    weight = layer.weight.detach().float().cpu()
    return np.ascontiguousarray(weight.reshape(*weight.shape[:2], -1).permute(0, 2, 1).numpy())
