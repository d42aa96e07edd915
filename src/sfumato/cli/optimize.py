"""`sfumato optimize`: a recipe on a model."""

import time
from pathlib import Path

import click

from sfumato.cli.common import (
    Progress,
    debug_option,
    example,
    interruptible,
    json_option,
    print_json,
    quiet_option,
)
from sfumato.cli.convert import outcome
from sfumato.cli.recipes import shortcuts
from sfumato.files import human_bytes


@click.command(
    epilog=example(
        "sfumato optimize ./sd15 ./sd15-int8 --recipe int8",
        "sfumato optimize ./sd15 ./sd15-fast --recipe fast",
        "sfumato optimize mini ./mini-small --recipe int8-int4 --samples 100",
        "sfumato optimize ./sdxl ./sdxl-mine --recipe mine.toml --prompts captions.txt",
    )
)
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--recipe",
    default="int8",
    show_default=True,
    metavar="NAME|FILE",
    help="One of `sfumato recipes`, or TOML.",
)
@click.option("--prompts", type=click.Path(path_type=Path), help="Captions for the calibration, one a line.")
@click.option("--samples", type=int, help="Runs of the denoiser to learn from.  [default: the recipe's, 200]")
@click.option("--max-drop", type=float, help="For mixed: the most loss of R@1, 0 to 1.  [default: 0.02]")
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads to calibrate with.")
@json_option
@quiet_option
@debug_option
def optimize(
    model: str,
    out: Path,
    recipe: str,
    prompts: Path | None,
    samples: int | None,
    max_drop: float | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Apply a recipe to MODEL (a folder or a name) and write the model folder OUT.

    An interrupted calibration goes on where it stopped when the command is given again.
    """
    from sfumato.optimize import optimize as optimize_model

    started = time.perf_counter()
    with interruptible(lambda: outcome(out)), Progress(quiet) as progress:
        artifact = optimize_model(
            model,
            out,
            recipe=recipe,
            prompts=prompts,
            samples=samples,
            max_drop=max_drop,
            threads=threads,
            on_progress=progress.stage,
            on_sample=lambda done, total: progress.step(done, total, "sample"),
        )
    seconds = time.perf_counter() - started
    manifest = artifact.manifest
    if as_json:
        print_json(
            {
                "model": manifest.name,
                "path": str(out),
                "family": manifest.family,
                "recipe": manifest.precision,
                "samples": manifest.recipe.samples if manifest.recipe else 0,
                "reuse": manifest.sampling.reuse,
                "guidance_every": manifest.sampling.guidance_every,
                "bytes": manifest.bytes,
                "seconds": round(seconds, 3),
            }
        )
    else:
        sampling = shortcuts(manifest.sampling.reuse, manifest.sampling.guidance_every)
        said = [manifest.family, manifest.precision, *sampling, human_bytes(manifest.bytes)]
        click.echo(f"{out}: {', '.join(said)}, {seconds:.1f} s")
