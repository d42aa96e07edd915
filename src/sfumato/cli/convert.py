"""`sfumato convert`: from a checkpoint to a model folder."""

import math
import re
import time
from pathlib import Path
from typing import Any

import click

from sfumato.artifact import MANIFEST
from sfumato.cli.common import (
    Progress,
    debug_option,
    example,
    interruptible,
    json_option,
    print_json,
    quiet_option,
)
from sfumato.convert import FewStep, MergingMethod, Precision, Weights
from sfumato.convert import convert as convert_checkpoint
from sfumato.errors import InvalidRequest
from sfumato.files import human_bytes


@click.command(
    epilog=example(
        "sfumato convert ./stable-diffusion-v1-5 ./sd15",
        "sfumato convert stabilityai/stable-diffusion-xl-base-1.0 ./sdxl --weights int8",
        "sfumato convert ./sd3-medium ./sd3 --without-t5 "
        "--lora flash-sd3/adapter_model.safetensors --few-step flash",
        "sfumato convert ./stable-diffusion-v1-5 ./sd15-merged --token-merging 0.5",
        "sfumato convert ./stable-diffusion-v1-5 ./sd15-taesd --tiny-decoder ./taesd",
    )
)
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    type=click.Choice(["fp16", "fp32"]),
    help="Stored weights.  [default: fp16]",
)
@click.option("--weights", type=click.Choice(["int8", "int4", "nf4"]), help="Linear layers in 8 or 4 bits.")
@click.option("--without-t5", is_flag=True, help="Leave the T5 encoder of an SD3 model out.")
@click.option("--lora", "loras", metavar="FILE[:SCALE]", multiple=True, help="Fuse a LoRA; may be repeated.")
@click.option(
    "--few-step",
    type=click.Choice(["lcm", "lightning", "flash"]),
    help="Sample as LoRAs for few steps want it.",
)
@click.option(
    "--token-merging",
    type=float,
    metavar="RATIO",
    default=0.0,
    help="Let attention do without this share of the tokens, up to 0.75.",
)
@click.option(
    "--merging-method",
    type=click.Choice(["match", "pool"]),
    default="match",
    help="Merge tokens that are alike, or average keys and values.  [default: match]",
)
@click.option(
    "--tiny-decoder",
    type=click.Path(),
    help="A TAESD folder that decodes in the autoencoder's place: fast and small, a little softer.",
)
@click.option("--vae", type=click.Path(), help="Autoencoder in place of the model's own.")
@click.option(
    "--text-encoder",
    "text_encoders",
    type=click.Path(),
    multiple=True,
    help="Text encoder for a single file without it; may be repeated.",
)
@click.option("--tokenizers", type=click.Path(), help="Folder with tokenizer/ for a single file.")
@click.option(
    "--prediction", type=click.Choice(["epsilon", "v_prediction"]), help="What a single file's UNet predicts."
)
@json_option
@quiet_option
@debug_option
def convert(
    source: str,
    out: Path,
    precision: Precision | None,
    weights: Weights | None,
    without_t5: bool,
    loras: tuple[str, ...],
    few_step: FewStep | None,
    token_merging: float,
    merging_method: MergingMethod,
    tiny_decoder: str | None,
    as_json: bool,
    quiet: bool,
    **single_file: Any,
) -> None:
    """Convert SOURCE into the model folder OUT.

    SOURCE is a diffusers folder, a single .safetensors file, or a model on the Hugging Face Hub (org/name).
    """
    parsed = [parse_lora(lora) for lora in loras]
    started = time.perf_counter()
    with interruptible(lambda: outcome(out)), Progress(quiet) as progress:
        artifact = convert_checkpoint(
            source,
            out,
            precision=precision,
            weights=weights,
            without_t5=without_t5,
            loras=parsed,
            few_step=few_step,
            token_merging=token_merging,
            merging_method=merging_method,
            tiny_decoder=tiny_decoder,
            **single_file,
            on_progress=progress.stage,
        )
    seconds = time.perf_counter() - started
    manifest = artifact.manifest
    if as_json:
        print_json(
            {
                "model": manifest.name,
                "path": str(out),
                "family": manifest.family,
                "precision": manifest.precision,
                "bytes": manifest.bytes,
                "seconds": round(seconds, 3),
            }
        )
    else:
        click.echo(
            f"{out}: {manifest.family}, {manifest.precision}, {human_bytes(manifest.bytes)}, {seconds:.1f} s"
        )


def outcome(out: Path) -> str:
    """What an interruption leaves: nothing, unless the folder had just been finished."""
    return f"{out} is complete" if (out / MANIFEST).is_file() else "nothing was written"


def parse_lora(text: str) -> tuple[Path, float]:
    """`FILE` or `FILE:SCALE` as a path and a scale (1.0 when none is given)."""
    match = re.fullmatch(r"(.+):([^:/\\]*)", text)
    if match is None or Path(text).is_file():
        return Path(text), 1.0
    try:
        scale = float(match[2])
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise InvalidRequest(
            f"--lora {text}: {match[2]!r} is no scale; write FILE:SCALE, for example x.safetensors:0.8"
        )
    return Path(match[1]), scale
