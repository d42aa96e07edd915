"""From a trained checkpoint to a model folder that the runtime loads.

The package is called like the function it exists for: `sfumato.convert(source, out)` works whether or not
this package was imported before.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import InvalidRequest, MissingDependency

if TYPE_CHECKING:
    from ..artifact import Artifact

Precision = Literal["fp16", "fp32"]
Weights = Literal["int8", "int4", "nf4"]
Storage = Precision | Weights
FewStep = Literal["lcm", "lightning", "flash"]
Prediction = Literal["epsilon", "v_prediction"]
MergingMethod = Literal["match", "pool"]
OnProgress = Callable[[str, int, int], None]

__all__ = [
    "FewStep",
    "MergingMethod",
    "OnProgress",
    "Precision",
    "Prediction",
    "Storage",
    "Weights",
    "convert",
    "variants",
]


def convert(
    source: str | Path,
    out: str | Path,
    *,
    precision: Precision | None = None,
    weights: Weights | None = None,
    without_t5: bool = False,
    loras: Sequence[tuple[str | Path, float]] = (),
    few_step: FewStep | None = None,
    token_merging: float = 0.0,
    merging_method: MergingMethod = "match",
    tiny_decoder: str | Path | None = None,
    vae: str | Path | None = None,
    text_encoders: Sequence[str | Path] = (),
    tokenizers: str | Path | None = None,
    prediction: Prediction | None = None,
    on_progress: OnProgress | None = None,
) -> "Artifact":
    """Convert `source` into the model folder `out`, which must not exist or be empty.

    source: a diffusers folder, a single safetensors file, or a model on the Hugging Face Hub, as `org/name`;
        what is there in OpenVINO's format already is copied.
    precision: how weights are stored, "fp16" by default. weights: those of linear layers in 8 or 4 bits.
    without_t5: leave SD3's third text encoder out; its part of the context becomes zeros.
    loras: safetensors files with a strength each (1.0 as trained), fused together.
    few_step: sample as LoRAs of this kind want it ("lcm": LCM-LoRA and VegaRT; "lightning":
        SDXL-Lightning and Hyper-SD; "flash": Flash-SD3).
    token_merging: share of the tokens, 0 to 0.75, that the denoiser's self-attention does without.
    merging_method: "match" merges tokens that are alike, "pool" averages keys and values over the grid.
    tiny_decoder: folder of a TAESD (diffusers' `AutoencoderTiny`) that decodes in the autoencoder's place.
    vae: file or folder with an autoencoder that takes the place of the source's, or that it lacks.
    text_encoders, tokenizers: files or folders with what a single file lacks. prediction: what the UNet of a
        single file predicts, where its metadata does not say it.
    on_progress: told before each stage what it does, how many stages are done, and of how many.

    `out` appears complete or not at all. Raises CheckpointError where the source cannot be used,
    InvalidRequest for `out` or options that exclude each other, SfumatoError where the result would not fit
    on the disk, MissingDependency without the `convert` extra.
    """
    from .checks import check_source, check_target

    if precision == "fp32" and weights is not None:
        raise InvalidRequest(f"precision fp32 and weights {weights}: give one of them")
    if (weights or precision or "fp16") not in get_args(Precision) + get_args(Weights):
        raise InvalidRequest(f"weights {weights or precision!r}: must be fp16, fp32, int8, int4 or nf4")
    from ..graphs.token_merging import TokenMerging

    merging = TokenMerging(token_merging, merging_method)
    hub_id = check_source(source)
    check_target(Path(out))
    single = {
        "text_encoders": [Path(each) for each in text_encoders],
        "tokenizers": tokenizers and Path(tokenizers),
        "prediction": prediction,
    }
    options: dict[str, Any] = {"without_t5": without_t5, "on_progress": on_progress or _ignore}
    stored: Storage = weights or precision or "fp16"
    try:
        path, name = Path(source), None
        if hub_id is not None:
            from .hub import fetch, origin

            path = fetch(hub_id, variants=variants(stored), **options)
            name = origin(path)
        from .adopt import adopt, is_converted

        if is_converted(path):
            changes = (precision, weights, loras, few_step, merging.thousandths)
            if vae is not None or tiny_decoder is not None or any(changes) or any(single.values()):
                raise InvalidRequest(
                    f"{source}: converted already, so its weights stay as they are; "
                    "leave the options out, or convert the checkpoint it was made of"
                )
            return adopt(path, Path(out), origin=name, **options)
        from .run import convert_checkpoint
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"converting needs the package {error.name!r}; install it with `pip install 'sfumato[convert]'`"
        ) from error
    return convert_checkpoint(
        path,
        Path(out),
        stored=stored,
        loras=[(Path(file), scale) for file, scale in loras],
        few_step=few_step,
        merging=merging,
        single=single,
        vae=None if vae is None else Path(vae),
        tiny_decoder=None if tiny_decoder is None else Path(tiny_decoder),
        name=name or path.resolve().name,
        **options,
    )


def variants(stored: Storage) -> tuple[str | None, ...]:
    """Which weights to take where a checkpoint has several: half the reading where 16 bits are enough."""
    return (None, "fp16") if stored == "fp32" else ("fp16", None)


def _ignore(text: str, done: int, total: int) -> None:
    """Report no progress."""


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> "Artifact":
        return convert(*args, **options)


sys.modules[__name__].__class__ = _Callable
