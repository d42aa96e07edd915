"""Changes of a picture that leave its caption true, for the evaluator: place, colour, softness, noise."""

import math

import torch
from torch import Tensor
from torch.nn import functional

GROUPS = 8  # of a batch; each is degraded in its own way


def augment(x: Tensor, mirror: Tensor, generator: torch.Generator) -> Tensor:
    """Vary pictures [n, 3, side, side] in [-1, 1]; those where `mirror` (bool [n]) holds may be mirrored."""
    return degrade(recolour(move(x, mirror, generator), generator), generator).clamp(-1, 1)


def move(x: Tensor, mirror: Tensor, generator: torch.Generator) -> Tensor:
    """Scale by 0.8 to 1.2, rotate by up to 12 degrees, shift by up to 6 percent, mirror half of `mirror`."""
    n = len(x)
    scale = torch.exp(_uniform(n, math.log(0.8), math.log(1.2), generator))
    angle = _uniform(n, -math.pi / 15, math.pi / 15, generator)
    side = torch.where(mirror & (_uniform(n, 0, 1, generator) < 0.5), -1.0, 1.0)
    cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
    shift = _uniform(2 * n, -0.12, 0.12, generator).view(2, n)
    rows = torch.stack(
        [torch.stack([cosine * side, -sine, shift[0]]), torch.stack([sine * side, cosine, shift[1]])]
    )
    grid = functional.affine_grid(rows.permute(2, 0, 1), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


def recolour(x: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation and the channels' balance, little enough to keep colour words true."""
    n = len(x)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * _uniform(n, 0.75, 1.2, generator).view(n, 1, 1, 1)
    balance = _uniform(3 * n, 0.94, 1.06, generator).view(n, 3, 1, 1)
    contrast = _uniform(n, 0.85, 1.1, generator).view(n, 1, 1, 1)
    return x * balance * contrast + _uniform(n, -0.1, 0.1, generator).view(n, 1, 1, 1)


def degrade(x: Tensor, generator: torch.Generator) -> Tensor:
    """Soften, quantize as JPEG does, and add noise as decoders of latents do; a quarter stays as it was."""
    parts = list(x.chunk(GROUPS))
    for index in range(len(parts) // 4, len(parts)):
        part = soften(parts[index], float(_uniform(1, 0.3, 0.9, generator)))
        if index % 2:
            part = quantize(part, float(_uniform(1, 0.02, 0.2, generator)))
        strength = _uniform(len(part), 0, 0.08, generator).view(-1, 1, 1, 1)
        coarse = torch.randn(*part.shape[:2], 32, 32, generator=generator)
        noise = functional.interpolate(coarse, part.shape[-2:], mode="bilinear", align_corners=False)
        parts[index] = part + strength * (noise + torch.randn(part.shape, generator=generator) / 2)
    return torch.cat(parts)


def soften(x: Tensor, share: float) -> Tensor:
    """Lose detail: down to `share` of the size and up again."""
    small = functional.interpolate(
        x, scale_factor=share, mode="bilinear", antialias=True, align_corners=False
    )
    return functional.interpolate(small, x.shape[-2:], mode="bicubic", align_corners=False)


def quantize(x: Tensor, step: float) -> Tensor:
    """Round the cosine transform of 8x8 blocks, high frequencies most, as JPEG does (Wallace 1991)."""
    n, channels, height, width = x.shape
    k = torch.arange(8.0)
    transform = torch.cos(math.pi / 8 * k[:, None] * (k + 0.5)) / 2
    transform[0] /= math.sqrt(2)
    steps = step * (1 + k[:, None] + k)
    blocks = x.reshape(n, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    rounded = ((transform @ blocks @ transform.T) / steps).round() * steps
    return (transform.T @ rounded @ transform).transpose(3, 4).reshape(x.shape)


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low
