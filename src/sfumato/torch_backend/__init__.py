"""Checkpoints in PyTorch, as diffusers runs them: a baseline for comparisons, and four bits on GPUs."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import TorchPipeline
    from .source import TorchSource, parse_source

# Where this package is found, bitsandbytes (0.50) fetches code from the Hub and runs it on being imported.
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]

__all__ = ["TorchPipeline", "TorchSource", "parse_source"]

_HOMES = {"TorchPipeline": ".pipeline", "TorchSource": ".source", "parse_source": ".source"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
