"""Models side by side: sizes, times, memory, and how near their pictures are to a reference's and to prompts.

The package is called like the function it exists for: `sfumato.compare(models, out)` works whether or not
this package was imported before. What it exports is imported when it is used.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..graphs.token_merging import Method
    from .evaluator import Evaluator, Reading, Scores
    from .fidelity import frechet_distance, psnr, recall, ssim
    from .records import Report

OnProgress = Callable[[str, int, int], None]

__all__ = [
    "Evaluator",
    "OnProgress",
    "Reading",
    "Report",
    "Scores",
    "compare",
    "frechet_distance",
    "psnr",
    "recall",
    "ssim",
]

_HOMES = {
    **dict.fromkeys(("Evaluator", "Reading", "Scores"), ".evaluator"),
    **dict.fromkeys(("frechet_distance", "psnr", "recall", "ssim"), ".fidelity"),
    "Report": ".records",
}


def compare(
    models: Sequence[str | Path],
    out: str | Path,
    *,
    reference: str | Path | None = None,
    prompts: str | Path | Sequence[str] | None = None,
    count: int | None = None,
    steps: int | None = None,
    size: tuple[int, int] | None = None,
    guidance: float | None = None,
    seed: int = 0,
    device: str = "CPU",
    threads: int | None = None,
    precision: str | None = None,
    memory: str = "auto",
    token_merging: Sequence[float] = (),
    merging_method: "Method" = "match",
    reuse: Sequence[str] = (),
    on_progress: OnProgress | None = None,
) -> "Report":
    """Make the same pictures with every model and write what they cost and how they differ into `out`.

    models: model folders or names; "torch:SOURCE" is a checkpoint in PyTorch.
    out: the folder to fill, which must not exist or be empty. It appears complete or not at all.
    reference: what the others are held against: one of the models, or a further one; by default the first.
    prompts: a text file with a prompt a line, the name of a set that ships ("general" or "icons"), or the
        prompts themselves; by default a set that ships. count: how many, spread evenly over them; by default
        10 of a set that ships, and all of others.
    steps, size (width and height), guidance: for all models; the reference's defaults where None.
    seed: of the first picture; picture number i has the seed plus i.
    device, threads, precision, memory: as in `Pipeline.load`, for every model.
    token_merging, reuse: ratios, and ways to reuse between steps ("off", "balanced", "fast"), to try besides;
        every model takes part as it is, with its own default of reuse, and with each of them.
    on_progress: told what is being done, how much of it is done, and of how much.

    Each model runs in a process of its own. After one warm-up each, every picture is a timed run; for each
    prompt the models take turns, in changing order. Raises InvalidRequest for what cannot be compared.
    """
    from ..graphs.token_merging import TokenMerging
    from ..runtime.reuse import check_reuse
    from .run import Asked, compare_models

    running = {"device": device, "threads": threads, "precision": precision, "memory": memory}
    running |= {"merging_method": merging_method}
    ratios = [TokenMerging(ratio, merging_method).ratio for ratio in token_merging]
    reuses = [check_reuse("reuse", way) for way in reuse]
    asked = Asked(
        models, Path(out), reference, prompts, count, steps, size, guidance, seed, running, ratios, reuses
    )
    return compare_models(asked, on_progress or _ignore)


def _ignore(text: str, done: int, total: int) -> None:
    """Report no progress."""


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> "Report":
        return compare(*args, **options)


sys.modules[__name__].__class__ = _Callable


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
