"""Checkpoints in PyTorch, as diffusers runs them: a baseline for comparisons, and four bits on GPUs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..offline import fetch_no_kernels

if TYPE_CHECKING:
    from .pipeline import TorchPipeline
    from .source import TorchSource, parse_source

fetch_no_kernels()

__all__ = ["TorchPipeline", "TorchSource", "parse_source"]

_HOMES = {"TorchPipeline": ".pipeline", "TorchSource": ".source", "parse_source": ".source"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
