"""The ranges that a run begins with."""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.errors import InvalidRequest
from sfumato.files import atomic_file
from sfumato.optimize.ranges import Grid, Smooth
from sfumato.train.qat.layers import Readers
from sfumato.train.qat.observe import first_grids
from sfumato.train.qat.task import Conditioned, predict

RANGES = "ranges.npz"


def beginning(
    folder: Path,
    denoiser: Any,
    readers: Sequence[Readers],
    smooth: Smooth,
    shown: Conditioned,
    samples: int,
    batch: int,
) -> list[Grid]:
    """The grids of `readers`: those in `folder`, else found on noised training latents and left there."""
    file = folder / RANGES
    if not file.exists():
        runs = _runs(denoiser, shown, samples, batch)
        _write(file, first_grids(denoiser, readers, smooth, runs))
    try:
        with np.load(file, allow_pickle=False) as arrays:
            grids = [_read(arrays, number) for number in range(len(readers))]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidRequest(f"{file}: damaged ({error}); remove {folder} to begin anew") from error
    return grids


def _runs(denoiser: Any, shown: Conditioned, samples: int, batch: int) -> Iterator[Callable[[], Any]]:
    """Runs of the denoiser on noised latents of `samples` pictures; timesteps are spread evenly."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    device = next(denoiser.parameters()).device
    timesteps = shown.noising.spread(samples)[torch.randperm(samples, generator=generator)]
    for some in timesteps.split(batch):
        latents, captions, dropped = shown.draw(len(some), rng)
        noise = torch.randn(latents.shape, generator=generator)
        noised, _ = shown.noising.mix(latents, noise, some)
        condition = shown.inputs(latents.to(device), captions, dropped.to(device))
        yield partial(_run, denoiser, noised.to(device), some.to(device), condition)


def _run(denoiser: Any, noised: Any, timesteps: Any, condition: dict[str, Any]) -> None:
    bfloat16 = torch.autocast(noised.device.type, torch.bfloat16)
    with bfloat16 if noised.device.type == "cuda" else nullcontext():
        predict(denoiser, noised, timesteps, condition)


def _write(file: Path, grids: Sequence[Grid]) -> None:
    arrays: dict[str, Any] = {}
    for number, grid in enumerate(grids):
        arrays |= {f"{number}.{name}": np.asarray(value) for name, value in asdict(grid).items()}
    with atomic_file(file) as partial_file, partial_file.open("wb") as stream:
        np.savez(stream, **arrays)


def _read(arrays: Any, number: int) -> Grid:
    scales, low, high = (arrays[f"{number}.{name}"] for name in ("scales", "low", "high"))
    return Grid(scales, float(low), float(high))
