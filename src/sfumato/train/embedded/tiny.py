"""A tiny autoencoder that decodes quickly: TAESD's architecture on the shared autoencoder's latents."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional

from sfumato.files import write_errors
from sfumato.train.embedded import dataset
from sfumato.train.embedded.autoencoder import (
    CONFIG,
    held_out,
    load_autoencoder,
    psnr,
    reconstruction_loss,
    through,
)
from sfumato.train.embedded.group_norm import use_channels_last
from sfumato.train.embedded.latents import cached_latents, to_tensor
from sfumato.train.loop import Plan, Task, is_main, run

WIDTH = 32


class TinyTask(Task):
    """The decoder restores pictures from their scaled latents; the encoder learns these latents.

    Half of the latents get noise of up to a tenth of their spread, as a diffusion model's have it.
    """

    def __init__(self, pictures: np.ndarray, latents: Tensor) -> None:
        super().__init__()
        self.pictures, self.latents = pictures, latents
        self.tiny = AutoencoderTiny(
            latent_channels=CONFIG["latent_channels"],
            encoder_block_out_channels=(WIDTH,) * 4,
            decoder_block_out_channels=(WIDTH,) * 4,
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(3, 3, 3, 1),
        ).to(memory_format=torch.channels_last)

    def draw(self, size: int, rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, ...]:
        picks = rng.integers(len(self.pictures), size=size)
        shaken = torch.rand(size, 1, 1, 1, generator=generator).mul(2).sub(1).clamp_min(0)
        noise = torch.randn((size, *self.latents.shape[1:]), generator=generator)
        return to_tensor(self.pictures[picks]), self.latents[picks], 0.1 * shaken * noise

    def forward(self, *batch: Tensor) -> dict[str, Tensor]:
        x, latents, noise = batch
        noised = (latents + noise).contiguous(memory_format=torch.channels_last)
        y = self.tiny.decoder(noised).float()
        encoded = functional.mse_loss(self.tiny.encoder(x).float(), latents)
        restored = reconstruction_loss(y, x)
        return {"loss": restored + encoded, "mse": functional.mse_loss(y, x), "latents": encoded}


def train(data: Path, vae_folder: Path, out: Path, plan: Plan, say: Callable[[str], None] = print) -> None:
    """Train the tiny autoencoder of the autoencoder in `vae_folder` and write it to `out/tiny`, in 16 bits.

    Resumes from `out/checkpoint.pt`.
    """
    pictures, records = dataset.load(data)
    rows = dataset.indices(records, "train")
    vae = load_autoencoder(vae_folder)
    use_channels_last(vae)
    latents = cached_latents(vae, pictures, rows, out)
    torch.manual_seed(plan.seed)
    task = TinyTask(np.array(pictures[rows]), latents)
    run(task, plan, out, say)
    if not is_main():
        return

    def through_tiny(x: Tensor) -> Tensor:
        mean = vae.encoder(x).chunk(2, 1)[0]
        restored: Tensor = task.tiny.decoder(mean * vae.config.scaling_factor)
        return restored

    figures = [psnr(restore, pictures[held_out(records)]) for restore in (through_tiny, through(vae))]
    say("held-out PSNR {:.2f} dB; of the whole decoder {:.2f} dB".format(*figures))
    with write_errors(out / "tiny"):
        task.tiny.half().save_pretrained(out / "tiny")
