"""What a training run keeps: averaged weights, atomic checkpoints, a learning rate, a log."""

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import InvalidRequest, SfumatoError


class Ema:
    """Exponential moving average of the trained parameters, warmed up by min(decay, (1 + n) / (10 + n))."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow = {name: p.detach().clone() for name, p in trained(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        current = trained(model)
        torch._foreach_lerp_(list(self.shadow.values()), [current[n] for n in self.shadow], 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        current = trained(model)
        for name, value in self.shadow.items():
            current[name].copy_(value)


class Averaged:
    """Context in which `model` holds the averaged weights."""

    def __init__(self, model: nn.Module, ema: Ema) -> None:
        self.model, self.ema = model, ema

    def __enter__(self) -> None:
        self.kept = {name: p.detach().clone() for name, p in trained(self.model).items()}
        self.ema.copy_to(self.model)

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for name, p in trained(self.model).items():
            p.copy_(self.kept[name])


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_checkpoint(path: Path, step: int, model: nn.Module, ema: Ema, optimizers: list[Any]) -> None:
    """Replace `path` in one step: a kill or a full disk leaves the old checkpoint intact.

    step: how many are done. Raises SfumatoError where it cannot be written.
    """
    state = {
        "step": step,
        "model": {name: p.detach() for name, p in trained(model).items()},
        "average": ema.shadow,
        "updates": ema.updates,
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    partial = path.with_suffix(".partial")
    try:
        torch.save(state, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        kept = f"; {path} still holds the last good one" if path.exists() else ""
        raise SfumatoError(f"cannot write checkpoint {path}: {error}{kept}") from error


def load_checkpoint(path: Path, model: nn.Module, ema: Ema, optimizers: list[Any]) -> int:
    """Restore everything from `path` and return the step to go on from; 0 where there is no checkpoint.

    Raises InvalidRequest where the file is damaged or belongs to another architecture, and changes nothing.
    """
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        step, weights = int(state["step"]), state["model"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise InvalidRequest(
            f"{path} is no readable checkpoint ({type(error).__name__}); delete it to begin anew"
        ) from error
    ours = trained(model)
    for name in sorted(ours.keys() | weights.keys()):
        found = [tuple(p.shape) if p is not None else None for p in (weights.get(name), ours.get(name))]
        if found[0] != found[1]:
            raise InvalidRequest(
                f"{path} is a checkpoint of another architecture: {name} is {found[0]}, here {found[1]}; "
                "use another output folder, or delete it to begin anew"
            )
    with torch.no_grad():
        for name, p in ours.items():
            p.copy_(weights[name])
            ema.shadow[name].copy_(state["average"][name])
    ema.updates = int(state["updates"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    return step


def cosine(step: int, steps: int, peak: float, floor: float = 0.02) -> float:
    """Learning rate at `step`: linear warm-up (200 steps or a tenth), then a cosine to `floor` of it."""
    warmup = min(200, steps // 10)
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
