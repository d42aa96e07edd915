"""Sfumato: small, fast Stable Diffusion pipelines for the machine you already have."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import SfumatoError

if TYPE_CHECKING:
    from .compare import compare
    from .convert import convert
    from .optimize import optimize
    from .runtime.pipeline import Pipeline
    from .runtime.result import Result

__version__ = "0.1.0"
__all__ = ["Pipeline", "Result", "SfumatoError", "__version__", "compare", "convert", "optimize"]

# `import openvino` (2026.4) reports its use to Google Analytics wherever this package is found.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

_HOMES = {
    "Pipeline": ".runtime.pipeline",
    "Result": ".runtime.result",
    "compare": ".compare",
    "convert": ".convert",
    "optimize": ".optimize",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return __all__
