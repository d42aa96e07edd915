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

from sfumato.train.embedded import dataset
from sfumato.train.embedded.group_norm import use_channels_last
from sfumato.train.embedded.state import Ema, Log, cosine, load_checkpoint, save_checkpoint

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


@dataclass(frozen=True)
class Plan:
    """Length and rates of one stage of training.

    freeze_encoder: train the decoder alone. latent_noise: for half of the pictures, blur the latents by noise
    of up to this share of their spread, so that the decoder smooths a diffusion model's small errors.
    """

    steps: int
    batch: int = 8
    rate: float = 1.5e-3
    kl: float = 5e-4
    freeze_encoder: bool = False
    latent_noise: float = 0.0
    seed: int = 0
    save_every: int = 250


def train(
    data: Path, out: Path, plan: Plan, start: Path | None = None, say: Callable[[str], None] = print
) -> None:
    """Train one stage and write the averaged model to `out/vae`; resumes from `out/checkpoint.pt`.

    `start` is the autoencoder of the stage before.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures, records = dataset.load(data)
    rows = dataset.indices(records, "train")
    vae = AutoencoderKL.from_pretrained(start) if start else AutoencoderKL(**CONFIG)
    if plan.freeze_encoder:
        vae.encoder.requires_grad_(False)
    use_channels_last(vae)
    trained = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, plan.rate, betas=(0.9, 0.99), weight_decay=1e-3)
    ema = Ema(vae, 0.998)
    checkpoint = out / "checkpoint.pt"
    parts = {"model": vae, "optimizer": optimizer, "ema": ema}
    first = load_checkpoint(checkpoint, parts)
    log = Log(out, plan.steps, plan.batch, say)
    for step in range(first, plan.steps):
        generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
        x = _batch(pictures, rows, plan.batch, generator)
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, plan.steps, plan.rate)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(not plan.freeze_encoder):
                mean, log_variance = vae.encoder(x).float().clamp(-30, 20).chunk(2, 1)
            noise = torch.randn(mean.shape, generator=generator)
            shaken = torch.rand(len(x), 1, 1, 1, generator=generator).mul(2).sub(1).clamp_min(0)
            spread = plan.latent_noise * shaken / vae.config.scaling_factor
            z = mean + (torch.exp(log_variance / 2) + spread) * noise
            y = vae.decoder(z.contiguous(memory_format=torch.channels_last)).float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = reconstruction_loss(y, x) + plan.kl * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        ema.update(vae)
        log.add(step, 50, loss=loss.detach(), mse=functional.mse_loss(y, x).detach(), kl=kl.detach())
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            save_checkpoint(checkpoint, {"step": step + 1, **{k: v.state_dict() for k, v in parts.items()}})
    ema.copy_to(vae)
    if not plan.freeze_encoder:
        center(vae, pictures[rows[:: max(1, len(rows) // 512)]])
    vae.save_pretrained(out / "vae")
    say(f"held-out PSNR {psnr(vae, pictures[held_out(records)]):.2f} dB")


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1 on a pyramid of four scales, L1 on edges, and squared error; pictures in [-1, 1].

    The coarse scales hold flat areas to their colour, which group normalization tends to lose.
    """
    loss = 2 * functional.mse_loss(y, x)
    loss = loss + (y.diff(dim=2) - x.diff(dim=2)).abs().mean() + (y.diff(dim=3) - x.diff(dim=3)).abs().mean()
    for _ in range(4):
        loss = loss + functional.l1_loss(y, x)
        y, x = functional.avg_pool2d(y, 2), functional.avg_pool2d(x, 2)
    return loss


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
def encode(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 64) -> Tensor:
    """Means of the latent distributions (float32 [n, channels, 16, 16], not scaled) of uint8 pictures."""
    parts = []
    for begin in range(0, len(pictures), batch):
        x = to_tensor(pictures[begin : begin + batch])
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(vae.encoder(x).float().chunk(2, 1)[0].contiguous())
    return torch.cat(parts)


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: np.ndarray) -> float:
    """Mean over pictures of the PSNR in dB, of 8-bit values, through encoder mean and decoder in float32."""
    total = 0.0
    for begin in range(0, len(pictures), 32):
        part = pictures[begin : begin + 32]
        y = vae.decoder(vae.encoder(to_tensor(part)).chunk(2, 1)[0])
        levels = ((y / 2 + 0.5).clamp(0, 1) * 255).round()
        wanted = torch.from_numpy(part.astype(np.float32)).permute(0, 3, 1, 2)
        error = (levels - wanted).square().mean((1, 2, 3)).clamp_min(1e-10)
        total += float((10 * torch.log10(255**2 / error)).sum())
    return total / len(pictures)


def held_out(records: list[dataset.Record]) -> np.ndarray:
    """Positions of every picture that training never sees."""
    return np.concatenate([dataset.indices(records, "concept"), dataset.indices(records, "pair")])


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 [n, side, side, 3] -> float32 [n, 3, side, side] in [-1, 1], channels last."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()
    return x.div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def _batch(pictures: np.ndarray, rows: np.ndarray, size: int, generator: torch.Generator) -> Tensor:
    picks = rows[torch.randint(len(rows), (size,), generator=generator).numpy()]
    x = to_tensor(pictures[picks])
    flip = torch.rand(size, generator=generator) < 0.5
    return torch.where(flip[:, None, None, None], x.flip(3), x).contiguous(memory_format=torch.channels_last)
