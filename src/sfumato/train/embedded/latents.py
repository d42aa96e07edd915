"""Latents of the training pictures, encoded once and kept beside a run."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from sfumato.files import atomic_file


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 64) -> Tensor:
    """Means of the latents (float32 [n, channels, height, width], not scaled) of uint8 pictures."""
    parts = []
    for begin in range(0, len(pictures), batch):
        x = to_tensor(pictures[begin : begin + batch])
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(vae.encode(x).latent_dist.mean.float().contiguous())
    return torch.cat(parts)


def cached_latents(vae: AutoencoderKL, pictures: np.ndarray, rows: np.ndarray, out: Path) -> Tensor:
    """Scaled latents (float32 [rows, channels, 16, 16]) of the pictures at `rows`.

    Kept in `out` under a name that says what they depend on: the pictures and the encoder's weights.
    """
    digest = hashlib.sha256(np.array(pictures[rows]).tobytes())
    for p in vae.encoder.parameters():
        digest.update(p.detach().contiguous().numpy())
    path = out / f"latents-{digest.hexdigest()[:16]}.pt"
    if path.exists():
        kept: Tensor = torch.load(path, weights_only=True)
        return kept
    out.mkdir(parents=True, exist_ok=True)
    latents = (encode(vae, pictures[rows]) - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    with atomic_file(path) as partial:
        torch.save(latents, partial)
    return latents


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 [n, side, side, 3] -> float32 [n, 3, side, side] in [-1, 1], channels last."""
    x = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float()
    return x.div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
