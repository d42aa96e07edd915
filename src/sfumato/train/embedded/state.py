"""What every training run needs: averaged weights, atomic checkpoints, a learning rate, a log line."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import InvalidRequest, SfumatoError


class Ema:
    """Exponential moving average of parameters with the warm-up min(decay, (1 + n) / (10 + n))."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        current = dict(model.named_parameters())
        torch._foreach_lerp_(list(self.shadow.values()), [current[n] for n in self.shadow], 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        current = dict(model.named_parameters())
        for name, value in self.shadow.items():
            current[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(value)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace `path` by `state` in one step: a kill or a full disk leaves the old checkpoint intact."""
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.save(state, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        kept = f"; {path} still holds the last good one" if path.exists() else ""
        raise SfumatoError(f"cannot write checkpoint {path}: {error}{kept}") from error


def load_checkpoint(path: Path, modules: dict[str, Any]) -> int:
    """Restore `modules` from `path` and return the step to go on from; 0 where there is no checkpoint."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, module in modules.items():
        try:
            module.load_state_dict(state[name])
        except (KeyError, RuntimeError) as error:
            raise InvalidRequest(
                f"{path} is a checkpoint of another architecture ({name}): {error}"
            ) from error
    return int(state["step"])


def cosine(step: int, steps: int, peak: float, warmup: int = 200, floor: float = 0.02) -> float:
    """Learning rate at `step`: linear warm-up, then a cosine down to `floor` of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    phase = torch.pi * min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (floor + (1 - floor) * (1 + float(torch.cos(torch.tensor(phase)))) / 2)


class Log:
    """Prints progress with images per second and the time left, and appends it to `log.jsonl`."""

    def __init__(self, folder: Path, steps: int, batch: int, say: Callable[[str], None]) -> None:
        self.path = folder / "log.jsonl"
        self.steps, self.batch, self.say = steps, batch, say
        self.since: tuple[float, int] | None = None
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, step: int, every: int, **values: float | Tensor) -> None:
        if self.since is None:
            self.since = (time.monotonic(), step)
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        if (step + 1) % every == 0:
            self._write(step + 1)

    def _write(self, done: int) -> None:
        assert self.since is not None
        began, first = self.since
        rate = (done - first) / max(1e-9, time.monotonic() - began)
        means = {name: round(total / self.count, 5) for name, total in self.sums.items()}
        left = (self.steps - done) / rate
        row = {
            "step": done,
            "images": done * self.batch,
            **means,
            "images_per_second": round(rate * self.batch, 1),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        figures = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        rate_text = f"{rate * self.batch:.1f} images/s, {left / 60:.0f} min left"
        self.say(f"step {done}/{self.steps} {figures} {rate_text}")
        self.sums, self.count = {}, 0
