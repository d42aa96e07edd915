"""Tiny checkpoints whose denoisers have quantizers, and pictures to train them on."""

import json
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.graphs import compress
from sfumato.optimize import layers
from sfumato.optimize.ranges import Grid
from sfumato.optimize.recipe import ComponentRecipe, load_recipe
from sfumato.train.distill.source import Source, open_source
from sfumato.train.qat.layers import Readers, denoiser_recipe, find_readers
from sfumato.train.qat.observe import first_grids
from sfumato.train.qat.student import Quantizers
from sfumato.train.qat.task import predict

SIDE = 8
TIMESTEPS = torch.tensor([300, 700])


@pytest.fixture(scope="module", autouse=True)
def small_layers_count():
    """Let the tiny models' layers count, which are below what is worth quantizing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "SMALLEST", 64)
        patch.setattr(compress, "SMALLEST", 64)
        yield


@dataclass(frozen=True)
class Student:
    """A tiny checkpoint with quantizers in its denoiser."""

    base: Source
    recipe: ComponentRecipe
    readers: list[Readers]
    grids: list[Grid]
    quantizers: Quantizers

    @property
    def denoiser(self) -> Any:
        return self.base.denoiser

    def inputs(self, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Noised latents of two pictures, timesteps, and the denoiser's other inputs."""
        noised, condition = inputs(self.base, seed)
        return noised, TIMESTEPS, condition

    def predict(self, seed: int = 0) -> torch.Tensor:
        return predict(self.denoiser, *self.inputs(seed))


def inputs(base: Source, seed: int = 0) -> tuple[torch.Tensor, dict[str, Any]]:
    """Noised latents of two pictures, and the denoiser's other inputs."""
    generator = torch.Generator().manual_seed(seed)
    noised = torch.randn(2, base.pipe.vae.config.latent_channels, SIDE, SIDE, generator=generator)
    condition = base.encode(["a red apple", "a smiling cat"], 8 * SIDE, torch.device("cpu"))
    return noised, condition


@pytest.fixture(scope="session")
def found(checkpoints):
    """`found(name, recipe)`: the layers that a recipe quantizes in a tiny checkpoint, and first grids."""

    @cache
    def find(name, recipe):
        base = open_source(checkpoints(name))
        own = denoiser_recipe(load_recipe(recipe), base.family)
        readers = find_readers(base.family, base.denoiser, own)

        def run(seed):
            noised, condition = inputs(base, seed)
            return lambda: predict(base.denoiser, noised, TIMESTEPS, condition)

        return own, readers, first_grids(base.denoiser, readers, own.smooth, map(run, range(1, 5)))

    return find


@pytest.fixture(scope="session")
def student(checkpoints, found):
    """`student(name, recipe, rank)`: a tiny checkpoint, with quantizers that a recipe wants."""

    def make(name, recipe="w4a8", rank=0):
        own, readers, grids = found(name, recipe)
        base = open_source(checkpoints(name))
        grids = [replace(grid, scales=grid.scales.copy()) for grid in grids]
        torch.manual_seed(0)
        return Student(base, own, readers, grids, Quantizers(base.denoiser, readers, grids, rank))

    return make


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of four pictures with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    captions = ("a red apple", "a green house", "a smiling cat", "noto face")
    for number in range(len(captions)):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    lines = [json.dumps({"file_name": f"{n}.png", "text": text}) for n, text in enumerate(captions)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
