"""AdamW in 32 or 8 bits, and how learning rates go."""

from typing import Any, Literal

import torch
from torch import nn

from sfumato.errors import MissingDependency
from sfumato.offline import fetch_no_kernels

Schedule = Literal["cosine", "constant"]


def adamw(groups: list[dict[str, Any]], betas: tuple[float, float], eight_bit: bool) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) on parameter groups that carry their `lr` and `weight_decay`.

    eight_bit: with moments in 8 bits (Dettmers et al. 2022, arXiv 2110.02861), a quarter of their memory.
    Raises MissingDependency where bitsandbytes is missing or does not work on the parameters' device.
    """
    if not eight_bit:
        return torch.optim.AdamW(groups, betas=betas)
    try:
        fetch_no_kernels()
        from bitsandbytes.optim import AdamW8bit

        _try(AdamW8bit, groups[0]["params"][0].device)
    except ImportError as error:
        raise MissingDependency(
            "8-bit AdamW needs bitsandbytes: pip install bitsandbytes, or train without it"
        ) from error
    except Exception as error:  # whatever its native library lacks shows when it is used first
        raise MissingDependency(
            f"8-bit AdamW: bitsandbytes does not work here ({error}); train without it"
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, betas=betas)
    return optimizer


def _try(kind: Any, device: torch.device) -> None:
    # Tensors below 4096 numbers keep 32-bit moments.
    probe = nn.Parameter(torch.zeros(4096, device=device))
    probe.grad = torch.ones_like(probe)
    kind([probe], lr=1e-3).step()


def rate_at(schedule: Schedule, step: int, steps: int, peak: float) -> float:
    """Learning rate at `step` of `steps`: the peak all the time, or on its way up and down again."""
    return peak if schedule == "constant" else cosine(step, steps, peak)


def cosine(step: int, steps: int, peak: float, floor: float = 0.02) -> float:
    """Learning rate at `step`: linear warm-up (200 steps or a tenth), then a cosine to `floor` of it."""
    warmup = min(200, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    phase = torch.pi * min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (floor + (1 - floor) * (1 + float(torch.cos(torch.tensor(phase)))) / 2)
