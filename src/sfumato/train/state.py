"""What a training run keeps: averaged weights and atomic checkpoints."""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import InvalidRequest, SfumatoError
from sfumato.files import write_errors

EIGHT_BIT = {"state1", "__bnb_optimizer_quant_state__"}
"""What bitsandbytes' optimizers alone keep for a parameter."""


class Ema:
    """Exponential moving average of parameters, warmed up by min(decay, (1 + n) / (10 + n)).

    It lies in the computer's memory wherever the parameters are. Without a decay, nothing is averaged.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float | None) -> None:
        self.decay = decay or 0.0
        self.parameters = dict(parameters) if decay else {}
        self.updates = 0
        self.shadow = {name: p.detach().to("cpu", copy=True) for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters as they are now in."""
        if not self.shadow:
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        current = [self.parameters[name].detach() for name in self.shadow]
        if all(p.device.type == "cpu" for p in current):
            torch._foreach_lerp_(list(self.shadow.values()), current, 1 - decay)
            return
        for shadow, p in zip(self.shadow.values(), current, strict=True):
            shadow.lerp_(p.to("cpu"), 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Give the parameters their averages."""
        for name, value in self.shadow.items():
            self.parameters[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the parameters have their averages."""
        kept = {name: p.detach().to("cpu", copy=True) for name, p in self.parameters.items()}
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    self.parameters[name].copy_(value)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_checkpoint(path: Path, step: int, model: nn.Module, ema: Ema, optimizers: list[Any]) -> None:
    """Replace `path` in one step: a kill or a full disk leaves the old checkpoint intact.

    step: how many are done. Raises SfumatoError where it cannot be written, or holds what is not finite.
    """
    state = {
        "step": step,
        "model": {name: p.detach() for name, p in trained(model).items()},
        "average": ema.shadow,
        "updates": ema.updates,
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    kept = f"; {path} still holds the last good one" if path.exists() else ""
    if (broken := _not_finite(state)) is not None:
        raise SfumatoError(f"step {step}: {broken} is not finite, lower the learning rate{kept}")
    partial = path.with_suffix(".partial")
    try:
        with write_errors(path):
            torch.save(state, partial)
            partial.replace(path)
    except (SfumatoError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        why = error if isinstance(error, SfumatoError) else f"{path}: writing failed ({error})"
        raise SfumatoError(f"{why}{kept}") from error


def _not_finite(state: Any, path: str = "") -> str | None:
    """Where in a nested state a tensor has NaN or infinity; None where all is well."""
    if isinstance(state, Tensor):
        return None if bool(state.isfinite().all()) else path.lstrip("/")
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    found = (_not_finite(value, f"{path}/{key}") for key, value in items)
    return next((broken for broken in found if broken is not None), None)


def load_checkpoint(path: Path, model: nn.Module, ema: Ema, optimizers: list[Any]) -> int:
    """Restore everything from `path` and return the step to go on from; 0 where there is no checkpoint.

    Learning rates and the optimizers' other settings stay those of now. Raises InvalidRequest where the file
    is damaged or belongs to another architecture or optimizer, and changes nothing.
    """
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        step, updates = int(state["step"]), int(state["updates"])
        weights, average, kept = state["model"], state["average"], state["optimizers"]
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
    if [_layout(o.state_dict(), _is_eight_bit(o)) for o in optimizers] != [
        _layout(each, any(EIGHT_BIT & entry.keys() for entry in each["state"].values())) for each in kept
    ]:
        raise InvalidRequest(
            f"{path} is a checkpoint of another optimizer (8-bit or not, or other parameter groups); use "
            "another output folder, or delete it to begin anew"
        )
    with torch.no_grad():
        for name, p in ours.items():
            p.copy_(weights[name])
        for name, shadow in ema.shadow.items():
            shadow.copy_(average.get(name, weights.get(name, shadow)))
    ema.updates = updates
    for optimizer, saved in zip(optimizers, kept, strict=True):
        _restore(optimizer, saved)
    return step


def _layout(state: dict[str, Any], eight_bit: bool) -> tuple[bool, list[int]]:
    return eight_bit, [len(group["params"]) for group in state["param_groups"]]


def _is_eight_bit(optimizer: Any) -> bool:
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    return type(inner).__module__.startswith("bitsandbytes")


def _restore(optimizer: Any, saved: dict[str, Any]) -> None:
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, setting in zip(optimizer.param_groups, settings, strict=True):
        group.update(setting)
