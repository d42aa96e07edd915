"""From a model folder to a smaller and faster one: recipes, calibration, quantization.

The package is called like the function it exists for: `sfumato.optimize(model, out, recipe="int8")` works
whether or not this package was imported before.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..artifact import Artifact

OnProgress = Callable[[str, int, int], None]
OnSample = Callable[[int, int], None]

__all__ = ["OnProgress", "OnSample", "optimize"]


def optimize(
    model: str | Path,
    out: str | Path,
    *,
    recipe: str | Path = "int8",
    prompts: str | Path | None = None,
    samples: int | None = None,
    max_drop: float | None = None,
    threads: int | None = None,
    on_progress: OnProgress | None = None,
    on_sample: OnSample | None = None,
) -> "Artifact":
    """Apply a recipe to a model folder or a model known by name, into the model folder `out`.

    recipe: the name of one that ships (`sfumato recipes`), or a .toml file.
    prompts: a file of captions, one a line, for the calibration; by default those that ship and suit the
        model. samples: how many runs of the denoiser to learn from; the recipe's number by default.
    max_drop: for recipes with [search], the most loss of R@1 (0..1) instead of the recipe's.
    threads: processor threads for the calibration; None leaves it to OpenVINO.
    on_progress: told before each stage what it does, how many stages are done, and of how many.
    on_sample: told how many runs of the denoiser are done, and of how many.

    `out` appears complete or not at all; a killed run's calibration is found by the next one. The same model,
    recipe, captions and samples give the same bytes on the same kind of machine.
    Raises InvalidRequest for what cannot be done, before any heavy work, and ArtifactError for a damaged
    model.
    """
    from ..artifact import find_model, load_artifact
    from ..files import check_new_folder
    from ..runtime.values import whole
    from .recipe import limited, load_recipe
    from .run import run

    chosen = load_recipe(recipe)
    if max_drop is not None:
        chosen = limited(chosen, max_drop)
    if samples is not None:
        whole("samples", samples, 1, 10_000)
    check_new_folder(Path(out))
    artifact = load_artifact(find_model(model))
    return run(
        artifact,
        Path(out),
        chosen,
        None if prompts is None else Path(prompts),
        samples,
        threads,
        on_progress or _ignore,
        on_sample or _ignore,
    )


def _ignore(*_: object) -> None:
    """Report no progress."""


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> "Artifact":
        return optimize(*args, **options)


sys.modules[__name__].__class__ = _Callable
