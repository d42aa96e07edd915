"""How much of a training picture a model knows from its caption, by how noisy the picture is.

    python benchmarks/by_noise.py mini models/mini
    python benchmarks/by_noise.py mini-sd models/mini-sd --data data/emoji

Mean squared error of the clean latents (of variance 1) that one step restores, for pictures of the training
set with their own caption, with none, and with another picture's. Where a picture's own caption is hardly
better than none, the model has yet to learn what words look like. sigma is flow matching's share of noise;
UNets are asked at the timestep of the nearest ratio of signal to noise.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.train.embedded import captions, dataset
from sfumato.train.embedded.latents import cached_latents
from sfumato.train.embedded.models import EmbeddedModel, Texts, known, start_from
from sfumato.train.embedded.models.sd3 import Mini
from sfumato.train.embedded.models.unet import UnetModel

SIGMAS = (0.98, 0.93, 0.9, 0.8, 0.65, 0.5, 0.3, 0.1)
BATCH = 64


def restored(model: EmbeddedModel, latents: Tensor, noise: Tensor, sigma: float, texts: list[str]) -> Tensor:
    """Clean latents as one step restores them from noised ones, all [batch, 12, 16, 16]."""
    if isinstance(model, Mini):
        return _from_flow(model, latents, noise, sigma, texts)
    assert isinstance(model, UnetModel)
    alphas = model.scheduler.alphas_cumprod
    timestep = int((torch.logit(alphas) - 2 * torch.logit(torch.tensor(1 - sigma))).abs().argmin())
    timesteps = torch.full((len(texts),), timestep)
    noised, _ = model.noised(latents, noise, timesteps)
    sides = torch.full((len(texts),), dataset.SIDE)
    predicted = model.predict(noised, timesteps, sides, model.token_ids(texts))
    return (noised - (1 - alphas[timestep]).sqrt() * predicted) / alphas[timestep].sqrt()


def _from_flow(model: Mini, latents: Tensor, noise: Tensor, sigma: float, texts: list[str]) -> Tensor:
    sigmas, without_t5 = torch.full((len(texts),), sigma), torch.ones(len(texts), dtype=torch.bool)
    noised = torch.lerp(latents, noise, sigma)
    return noised - sigma * model.predict(noised, sigmas, model.token_ids(texts), without_t5)


@torch.no_grad()
def errors(model: EmbeddedModel, latents: Tensor, sigma: float, texts: list[str]) -> float:
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    parts = []
    for begin in range(0, len(texts), BATCH):
        part = slice(begin, begin + BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            clean = restored(model, latents[part], noise[part], sigma, texts[part])
        parts.append((clean - latents[part]).square().mean((1, 2, 3)))
    return float(torch.cat(parts).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", help="of the architecture: mini, mini-sd, mini-xl")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--pictures", type=int, default=320)
    options = parser.parse_args()
    try:
        model = known(options.name)(Texts([], options.checkpoint)).eval()
        start_from(model, options.checkpoint)
        pictures, records = dataset.load(options.data)
        chosen = captions.evaluation(records, "train", options.pictures)
    except SfumatoError as error:
        parser.error(str(error))
    vae = AutoencoderKL.from_pretrained(options.checkpoint / "vae")
    rows = np.array([row for row, _ in chosen])
    with tempfile.TemporaryDirectory() as scratch:
        latents = cached_latents(vae.float(), pictures, rows, Path(scratch))
    own = [caption for _, caption in chosen]
    texts = {"own": own, "none": [""] * len(own), "another's": own[1:] + own[:1]}
    print(f"{'sigma':<8}" + "".join(f"{name:>12}" for name in texts))
    for sigma in SIGMAS:
        figures = [errors(model, latents, sigma, captioned) for captioned in texts.values()]
        print(f"{sigma:<8}" + "".join(f"{figure:>12.4f}" for figure in figures), flush=True)


if __name__ == "__main__":
    main()
