"""The embedded models' one autoencoder: AutoencoderKL, factor 8, trained on emoji art at 128x128.

Two stages: both halves on an image pyramid, edges and a small KL term; then the encoder is frozen (so that
latents are final and diffusion models can train on them) and the decoder alone goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from sfumato.errors import InvalidRequest
from sfumato.files import write_errors
from sfumato.runtime.values import not_negative
from sfumato.train.embedded import dataset
from sfumato.train.embedded.group_norm import use_channels_last
from sfumato.train.embedded.latents import encode, to_tensor
from sfumato.train.loop import Plan, Task, is_main, run

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 96, 160],
    "layers_per_block": 1,
    "latent_channels": 12,
    "norm_num_groups": 16,
    "sample_size": 128,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": False,
    "force_upcast": False,
    "shift_factor": 0.0,
}

CORNER = 12
"""Pixels to a side of what `Stage.corners` weighs."""


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    kl: weight of the KL term. freeze_encoder: train the decoder alone. latent_noise: for half of the
    pictures, blur the latents by noise of up to this share of their spread, so that the decoder smooths a
    diffusion model's small errors. corners: weight of the pictures' corners by themselves, where convolutions
    see their padding; they are too small a part of a picture to be learned with the rest. InvalidRequest
    where latent_noise or corners is negative or no number.
    """

    kl: float = 5e-4
    freeze_encoder: bool = False
    latent_noise: float = 0.0
    corners: float = 0.0

    def __post_init__(self) -> None:
        not_negative("latent noise", self.latent_noise)
        not_negative("corners' weight", self.corners)


class AutoencoderTask(Task):
    """The autoencoder, restoring drawn pictures."""

    def __init__(self, vae: AutoencoderKL, stage: Stage, pictures: np.ndarray) -> None:
        super().__init__()
        self.vae, self.stage, self.pictures = vae, stage, pictures
        vae.encoder.requires_grad_(not stage.freeze_encoder)
        use_channels_last(vae)

    def draw(self, size: int, rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, ...]:
        x = to_tensor(self.pictures[rng.integers(len(self.pictures), size=size)])
        flip = torch.rand(size, 1, 1, 1, generator=generator) < 0.5
        x = torch.where(flip, x.flip(3), x).contiguous(memory_format=torch.channels_last)
        side = x.shape[-1] // 8
        noise = torch.randn(size, self.vae.config.latent_channels, side, side, generator=generator)
        shaken = torch.rand(size, 1, 1, 1, generator=generator).mul(2).sub(1).clamp_min(0)
        return x, noise, shaken

    def forward(self, *batch: Tensor) -> dict[str, Tensor]:
        x, noise, shaken = batch
        mean, log_variance = self.vae.encoder(x).float().clamp(-30, 20).chunk(2, 1)
        spread = self.stage.latent_noise * shaken / self.vae.config.scaling_factor
        z = mean + (torch.exp(log_variance / 2) + spread) * noise
        y = self.vae.decoder(z.contiguous(memory_format=torch.channels_last)).float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = reconstruction_loss(y, x) + self.stage.kl * kl
        if self.stage.corners:
            loss = loss + self.stage.corners * functional.l1_loss(corners(y), corners(x))
        return {"loss": loss, "mse": functional.mse_loss(y, x), "kl": kl}


def train(
    data: Path,
    out: Path,
    plan: Plan,
    stage: Stage,
    start: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Train one stage and write the averaged model to `out/vae`; resumes from `out/checkpoint.pt`.

    `start` is the autoencoder of the stage before. Raises InvalidRequest where there is none, or where an
    encoder is to be frozen that nobody trained.
    """
    if stage.freeze_encoder and start is None:
        raise InvalidRequest("a frozen encoder must be a trained one: give --start, the folder vae of a run")
    pictures, records = dataset.load(data)
    shown = np.array(pictures[dataset.indices(records, "train")])
    torch.manual_seed(plan.seed)
    vae = load_autoencoder(start) if start else AutoencoderKL(**CONFIG)
    run(AutoencoderTask(vae, stage, shown), plan, out, say)
    if not is_main():
        return
    if not stage.freeze_encoder:
        center(vae, shown[:: max(1, len(shown) // 512)])
    with write_errors(out / "vae"):
        vae.save_pretrained(out / "vae")
    say(f"held-out PSNR {psnr(through(vae), pictures[held_out(records)]):.2f} dB")


def load_autoencoder(folder: Path) -> AutoencoderKL:
    """The autoencoder in a diffusers folder. Raises InvalidRequest where it holds none."""
    if not (folder / "config.json").is_file():
        raise InvalidRequest(
            f"{folder}: no autoencoder (config.json is missing); give the folder vae of a run or a checkpoint"
        )
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder, local_files_only=True)
    return vae


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1 on a pyramid of four scales, L1 on edges, squared error and its logarithm; pictures in [-1, 1].

    The coarse scales hold flat areas to their colour, which group normalization tends to lose. The logarithm
    makes every picture count alike, as PSNR does.
    """
    error = (y - x).square().mean((1, 2, 3))
    loss = 2 * error.mean() + 0.15 * torch.log(error + 1e-5).mean()
    loss = loss + (y.diff(dim=2) - x.diff(dim=2)).abs().mean() + (y.diff(dim=3) - x.diff(dim=3)).abs().mean()
    for _ in range(4):
        loss = loss + functional.l1_loss(y, x)
        y, x = functional.avg_pool2d(y, 2), functional.avg_pool2d(x, 2)
    return loss


def corners(pictures: Tensor) -> Tensor:
    """The four corners of pictures, [batch, 3, 2 CORNER, 2 CORNER]."""
    rows = torch.cat([pictures[..., :CORNER, :], pictures[..., -CORNER:, :]], dim=-2)
    return torch.cat([rows[..., :CORNER], rows[..., -CORNER:]], dim=-1)


@torch.no_grad()
def center(vae: AutoencoderKL, pictures: np.ndarray) -> None:
    """Give the latents a mean of zero per channel and record their scale as `scaling_factor`."""
    latents = encode(vae, pictures)
    mean = latents.mean((0, 2, 3))
    channels = len(mean)
    vae.encoder.conv_out.bias[:channels] -= mean
    vae.decoder.conv_in.bias += (vae.decoder.conv_in.weight * mean[None, :, None, None]).sum((1, 2, 3))
    scale = 1 / float((latents - mean[None, :, None, None]).std())
    vae.register_to_config(scaling_factor=round(scale, 5))


@torch.no_grad()
def psnr(restore: Callable[[Tensor], Tensor], pictures: np.ndarray) -> float:
    """Mean over pictures of the PSNR in dB of what `restore` makes of them, in 8-bit values.

    restore: pictures (float32 [batch, 3, side, side] in [-1, 1]) in and out.
    """
    total = 0.0
    for begin in range(0, len(pictures), 32):
        part = pictures[begin : begin + 32]
        y = restore(to_tensor(part))
        levels = ((y / 2 + 0.5).clamp(0, 1) * 255).round()
        wanted = torch.from_numpy(part.astype(np.float32)).permute(0, 3, 1, 2)
        error = (levels - wanted).square().mean((1, 2, 3)).clamp_min(1e-10)
        total += float((10 * torch.log10(255**2 / error)).sum())
    return total / len(pictures)


def through(vae: AutoencoderKL) -> Callable[[Tensor], Tensor]:
    """Encoder mean and decoder, one after the other."""

    def restore(x: Tensor) -> Tensor:
        y: Tensor = vae.decoder(vae.encoder(x).chunk(2, 1)[0])
        return y

    return restore


def held_out(records: list[dataset.Record]) -> np.ndarray:
    """Positions of every picture that training never sees."""
    return np.concatenate([dataset.indices(records, "concept"), dataset.indices(records, "pair")])
