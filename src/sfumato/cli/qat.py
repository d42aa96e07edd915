"""`sfumato train qat`: from a float checkpoint and pictures to a quantized model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sfumato.cli.common import (
    Function,
    Progress,
    debug_option,
    example,
    interruptible,
    json_option,
    print_json,
    quiet_option,
)
from sfumato.cli.training import DATA, FOLDER, GOES_ON, needs_torch
from sfumato.files import human_bytes


def _weight(name: str, default: float, text: str) -> Callable[[Function], Function]:
    return click.option(name, type=click.FloatRange(0), default=default, show_default=True, help=text)


@click.command(
    epilog=example(
        "sfumato train qat models/mini-sd runs/mini-sd-int8 --data data/emoji",
        "sfumato train qat ./sd15 ./sd15-int8 --data ./pictures --rank 32 --checkpointing --batch 1",
        "sfumato train qat ./sd15 ./sd15-fast --data ./pictures --recipe int8-aggressive --token-merging 0.5",
        "torchrun --nproc-per-node 2 -m sfumato train qat ./sd15 ./sd15-int8 --data ./pictures",
    )
)
@click.argument("source", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option(
    "--data",
    type=FOLDER,
    default=DATA,
    show_default=True,
    help="Pictures with captions: a folder with metadata.jsonl, or the embedded set.",
)
@click.option(
    "--recipe",
    default="int8",
    show_default=True,
    help="What is quantized: int8, int8-aggressive, w4a8, hybrid, or a .toml file.",
)
@click.option("--steps", type=click.IntRange(1), default=4096, show_default=True, help="Optimizer steps.")
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Pictures at once.")
@click.option("--accumulate", type=click.IntRange(1), default=1, show_default=True, help="Batches in a step.")
@click.option("--rate", type=float, default=1e-5, show_default=True, help="Learning rate of weights.")
@click.option(
    "--range-rate", type=float, default=1e-3, show_default=True, help="Learning rate of quantizer ranges."
)
@click.option("--schedule", type=click.Choice(["constant", "cosine"]), default="constant", show_default=True)
@_weight("--data-loss", 1.0, "Weight of the training loss.")
@_weight("--teacher-loss", 1.0, "Weight of the distance to the float model's output.")
@_weight("--feature-loss", 0.0, "Weight of the distance to what the float model's blocks give.")
@click.option(
    "--ema", "ema_decay", type=click.FloatRange(0, 1), default=0.9999, show_default=True, help="0: none."
)
@click.option("--dropout", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Of captions.")
@click.option(
    "--samples", type=click.IntRange(1), default=300, show_default=True, help="That ranges begin with."
)
@click.option("--quantizers-only", is_flag=True, help="Train ranges alone; weights stay.")
@click.option(
    "--rank",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Train adapters of this rank instead of the weights, and absorb them: for little memory.",
)
@click.option("--token-merging", type=float, help="Share of merged tokens.  [default: the recipe's]")
@click.option("--merging-method", type=click.Choice(["match", "pool"]), help="[default: match]")
@click.option("--checkpointing", is_flag=True, help="Recompute activations: less memory, a third slower.")
@click.option("--eight-bit", is_flag=True, help="8-bit optimizer (needs bitsandbytes).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--save-every", type=click.IntRange(1), default=250, show_default=True, help="Steps.")
@click.option("--sample-every", type=click.IntRange(1), default=500, show_default=True, help="Steps.")
@json_option
@quiet_option
@debug_option
def qat(
    source: Path,
    out: Path,
    data: Path,
    recipe: str,
    range_rate: float,
    data_loss: float,
    teacher_loss: float,
    feature_loss: float,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Quantization-aware training of SOURCE, a diffusers folder, into the quantized model OUT.

    The denoiser learns on the pictures in DATA, with rounding in it and the float model as its teacher.
    Checkpoints, log and sample pictures go to OUT.run; an interrupted run goes on from there.
    """
    with needs_torch():
        from sfumato.train.loop import Plan
        from sfumato.train.qat.run import Settings, train
        from sfumato.train.qat.task import Losses
    losses = Losses(data=data_loss, teacher=teacher_loss, features=feature_loss)
    names = (
        "dropout",
        "samples",
        "quantizers_only",
        "rank",
        "token_merging",
        "merging_method",
        "checkpointing",
    )
    chosen = {name: given.pop(name) for name in names}
    settings = Settings(recipe=recipe, losses=losses, **chosen)
    plan = Plan(**given, rates={"ranges": range_rate}, weight_decay=1e-2, betas=(0.9, 0.999), log_every=5)
    with interruptible(lambda: GOES_ON), Progress(quiet) as progress:
        made = train(source, data, out, settings, plan, progress.say, progress.stage, progress.step)
    if made is None:
        return
    if as_json:
        print_json({"path": str(out), "precision": made.manifest.precision, "bytes": made.manifest.bytes})
    else:
        click.echo(f"{out}: {made.manifest.precision}, {human_bytes(made.manifest.bytes)}")
