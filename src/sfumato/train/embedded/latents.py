"""Latents of the training pictures, encoded once and kept beside a run."""

import hashlib
import json
from pathlib import Path
from typing import Any

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

    Kept in `out` under a name that says what they depend on: pictures, encoder and scale.
    """
    digest = hashlib.sha256(np.array(pictures[rows]).tobytes())
    digest.update(encoder_digest(vae))
    path = out / f"latents-{digest.hexdigest()[:16]}.pt"
    if path.exists():
        kept: Tensor = torch.load(path, weights_only=True)
        return kept
    out.mkdir(parents=True, exist_ok=True)
    shift, scale = scaling(vae)
    latents = (encode(vae, pictures[rows]) - shift) * scale
    with atomic_file(path) as partial:
        torch.save(latents, partial)
    return latents


def encoder_digest(vae: Any) -> bytes:
    """SHA-256 of all that a picture's scaled latents depend on besides the picture."""
    digest = hashlib.sha256(json.dumps(scaling(vae)).encode())
    for module in (vae.encoder, vae.quant_conv):
        for p in module.parameters() if module is not None else ():
            digest.update(p.detach().float().cpu().contiguous().numpy().data)
    return digest.digest()


def scaling(vae: Any) -> tuple[float, float]:
    """What is taken from the latents, and what the rest is multiplied by."""
    return vae.config.shift_factor or 0.0, vae.config.scaling_factor


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 [n, side, side, 3] -> float32 [n, 3, side, side] in [-1, 1], channels last."""
    x = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float()
    return x.div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
