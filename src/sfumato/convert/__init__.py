"""From a trained checkpoint (a diffusers folder) to a model folder that the runtime loads.

The package is called like the function it exists for: `sfumato.convert(source, out)` works whether or not
this package was imported before.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from ..errors import MissingDependency

if TYPE_CHECKING:
    from ..artifact import Artifact

Precision = Literal["fp16", "fp32"]
OnProgress = Callable[[str, int, int], None]

__all__ = ["OnProgress", "Precision", "convert"]


def convert(
    source: str | Path,
    out: str | Path,
    *,
    precision: Precision = "fp16",
    without_t5: bool = False,
    loras: Sequence[tuple[str | Path, float]] = (),
    on_progress: OnProgress | None = None,
) -> "Artifact":
    """Convert the diffusers folder `source` into the model folder `out`, which must not exist or be empty.

    precision: how weights are stored.
    without_t5: leave SD3's third text encoder out; its part of the context becomes zeros.
    loras: PEFT or diffusers safetensors files with a strength each (1.0 as trained), fused in that order.
    on_progress: told before each stage what it does, how many stages are done, and of how many.

    `out` appears complete or not at all. Raises CheckpointError where the source cannot be used,
    InvalidRequest for `out`, SfumatoError where it would not fit on the disk, MissingDependency without the
    `convert` extra.
    """
    from .checks import check_source, check_target

    check_source(Path(source))
    check_target(Path(out))
    try:
        from .run import convert_folder
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"converting needs the package {error.name!r}; install it with `pip install 'sfumato[convert]'`"
        ) from error
    return convert_folder(
        Path(source),
        Path(out),
        precision=precision,
        without_t5=without_t5,
        loras=[(Path(file), scale) for file, scale in loras],
        on_progress=on_progress or (lambda text, done, total: None),
    )


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> "Artifact":
        return convert(*args, **options)


sys.modules[__name__].__class__ = _Callable
