"""`sfumato train`: commands that need PyTorch, which is imported when one of them runs."""

import os
from pathlib import Path
from typing import Any

import click

from sfumato.cli.common import (
    HelpfulGroup,
    Progress,
    debug_option,
    example,
    interruptible,
    json_option,
    print_json,
    quiet_option,
)
from sfumato.cli.qat import qat
from sfumato.cli.training import FOLDER, GOES_ON, needs_torch, training_options


@click.group(cls=HelpfulGroup)
@debug_option
def train() -> None:
    """Train models (needs the `train` extra: pip install 'sfumato[train]')."""


train.add_command(qat)


@train.group(cls=HelpfulGroup, short_help="The models that ship with Sfumato, from scratch.")
@debug_option
def embedded() -> None:
    """Train the models that ship with Sfumato, from scratch, on icons with permissive licences."""


@embedded.command(epilog=example("sfumato train embedded data data/emoji"))
@click.argument("folder", type=FOLDER)
@click.option(
    "--cache",
    type=FOLDER,
    default=Path("data/packages"),
    show_default=True,
    help="Where the fetched packages are kept.",
)
@click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes that render."
)
@json_option
@quiet_option
@debug_option
def data(folder: Path, cache: Path, workers: int, as_json: bool, quiet: bool) -> None:
    """Fetch the icon packages with npm and render the pictures and captions into FOLDER."""
    with needs_torch():
        from sfumato.train.embedded import dataset

    with Progress(quiet) as progress:
        digest = dataset.build(
            folder, cache, workers, lambda done, total: progress.step(done, total, "rendered")
        )
    pictures, _ = dataset.load(folder)
    if as_json:
        print_json({"path": str(folder), "pictures": len(pictures), "sha256": digest})
    else:
        click.echo(f"{folder}: {len(pictures)} pictures, sha256 {digest}")


@embedded.command(epilog=example("sfumato train embedded vae runs/vae --data data/emoji"))
@click.argument("out", type=FOLDER)
@training_options(steps=2200, batch=8, rate=1.5e-3)
@click.option("--start", type=FOLDER, help="Weights to start from: a VAE's folder.")
@click.option("--freeze-encoder", is_flag=True, help="Train the decoder only, as the second stage.")
@click.option(
    "--latent-noise",
    type=float,
    default=0.0,
    show_default=True,
    help="Noise that the decoder learns to smooth.",
)
@click.option(
    "--corners", type=float, default=0.0, show_default=True, help="Weight of the pictures' corners alone."
)
@json_option
@quiet_option
@debug_option
def vae(
    out: Path,
    data: Path,
    start: Path | None,
    freeze_encoder: bool,
    latent_noise: float,
    corners: float,
    as_json: bool,
    quiet: bool,
    **plan: Any,
) -> None:
    """Train the shared autoencoder into OUT/vae; an interrupted run goes on from its checkpoint."""
    with needs_torch():
        from sfumato.train.embedded import autoencoder
        from sfumato.train.loop import Plan
    with interruptible(lambda: GOES_ON):
        stage = autoencoder.Stage(freeze_encoder=freeze_encoder, latent_noise=latent_noise, corners=corners)
        autoencoder.train(data, out, Plan(**plan), stage, start, Progress(quiet).say)
    report(out / "vae", as_json)


@embedded.command("tiny-vae", epilog=example("sfumato train embedded tiny-vae runs/tiny --vae runs/vae/vae"))
@click.argument("out", type=FOLDER)
@training_options(steps=3000, batch=8, rate=1e-3)
@click.option("--vae", "vae_folder", type=FOLDER, required=True, help="The autoencoder's folder.")
@json_option
@quiet_option
@debug_option
def tiny_vae(out: Path, data: Path, vae_folder: Path, as_json: bool, quiet: bool, **plan: Any) -> None:
    """Train a tiny autoencoder that decodes quickly into OUT/tiny, on the latents of the whole one."""
    with needs_torch():
        from sfumato.train.embedded import tiny
        from sfumato.train.loop import Plan
    with interruptible(lambda: GOES_ON):
        tiny.train(data, vae_folder, out, Plan(**plan), Progress(quiet).say)
    report(out / "tiny", as_json)


@embedded.command(epilog=example("sfumato train embedded diffusion mini runs/mini --vae runs/vae/vae"))
@click.argument("name")
@click.argument("out", type=FOLDER)
@training_options(steps=6000, batch=32, rate=1e-3)
@click.option("--vae", "vae_folder", type=FOLDER, required=True, help="The autoencoder's folder.")
@click.option(
    "--matrix-rate",
    type=float,
    default=2e-2,
    show_default=True,
    help="Peak learning rate of the denoiser's matrices.",
)
@click.option(
    "--words",
    default="",
    metavar="A,B,...",
    help="Teach these words only.  [default: everything, common first]",
)
@click.option(
    "--common-share",
    type=click.FloatRange(0, 1),
    default=0.8,
    show_default=True,
    help="Share of the draws that common things get.",
)
@click.option(
    "--start",
    type=FOLDER,
    multiple=True,
    help="A checkpoint whose weights the model begins with, where names and shapes agree; can be repeated.",
)
@click.option("--teacher", type=FOLDER, help="For mini-vega: the mini-xl checkpoint that it copies.")
@click.option(
    "--compile",
    "fused",
    is_flag=True,
    help="Compile the denoiser by torch.compile: faster steps for mini, and with AMX for UNets; needs a C++ "
    "compiler.",
)
@json_option
@quiet_option
@debug_option
def diffusion(
    name: str,
    out: Path,
    data: Path,
    vae_folder: Path,
    words: str,
    common_share: float,
    start: tuple[Path, ...],
    teacher: Path | None,
    fused: bool,
    as_json: bool,
    quiet: bool,
    **plan: Any,
) -> None:
    """Train the model NAME (mini, mini-sd, mini-xl, mini-xl-refiner, mini-vega) into OUT/model.

    An interrupted run goes on from its checkpoint.
    """
    with needs_torch():
        from sfumato.train.embedded import diffusion
        from sfumato.train.loop import Plan
    taught = tuple(word.strip() for word in words.split(",") if word.strip())
    lessons = diffusion.Lessons(common_share=common_share, words=taught)
    with interruptible(lambda: GOES_ON):
        diffusion.train(
            name, data, vae_folder, out, Plan(**plan), lessons, start, teacher, Progress(quiet).say, fused
        )
    report(out / "model", as_json)


@embedded.command(epilog=example("sfumato train embedded evaluator runs/evaluator --data data/emoji"))
@click.argument("out", type=FOLDER)
@training_options(steps=1200, batch=224, rate=2e-3)
@json_option
@quiet_option
@debug_option
def evaluator(out: Path, data: Path, as_json: bool, quiet: bool, **plan: Any) -> None:
    """Train the evaluator, which measures how well pictures fit their captions, into OUT/evaluator.

    An interrupted run goes on from its checkpoint.
    """
    with needs_torch():
        from sfumato.train.embedded import evaluator
        from sfumato.train.loop import Plan
    with interruptible(lambda: GOES_ON):
        evaluator.train(data, out, Plan(ema_decay=evaluator.EMA_DECAY, **plan), Progress(quiet).say)
    report(out / "evaluator", as_json)


@embedded.command(
    epilog=example("sfumato train embedded package mini runs/mini/model models/mini --vae runs/decoder/vae")
)
@click.argument("name")
@click.argument("model", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option("--vae", "vae_folder", type=FOLDER, help="The finished autoencoder's folder.  [default: none]")
@json_option
@quiet_option
@debug_option
def package(name: str, model: Path, out: Path, vae_folder: Path | None, as_json: bool, quiet: bool) -> None:
    """Join a trained MODEL and the autoencoder into the checkpoint OUT, in 16 bits."""
    with needs_torch():
        from sfumato.train.embedded.package import package
    package(name, model, vae_folder, out)
    report(out, as_json)


@train.command(epilog=example("sfumato train distill models/mini-sd runs/mini-sd-lcm --data data/emoji"))
@click.argument("source", type=FOLDER)
@click.argument("out", type=FOLDER)
@training_options(steps=1000, batch=16, rate=1e-3)
@click.option(
    "--method",
    type=click.Choice(["lcm", "segments", "flash"]),
    help="How to distill.  [default: lcm for UNets, segments for flows]",
)
@click.option(
    "--guidance",
    type=float,
    help="The guidance that becomes the student's own.  [default: the checkpoint's]",
)
@click.option("--rank", type=int, default=64, show_default=True, help="Rank of the LoRA.")
@click.option(
    "--few-steps", type=int, default=4, show_default=True, help="Steps that the student is made for."
)
@json_option
@quiet_option
@debug_option
def distill(
    source: Path,
    out: Path,
    data: Path,
    method: Any,
    guidance: float | None,
    rank: int,
    few_steps: int,
    as_json: bool,
    quiet: bool,
    **plan: Any,
) -> None:
    """Distill SOURCE, a diffusers folder, to few steps: a LoRA in OUT.

    `sfumato convert SOURCE MODEL --lora OUT/pytorch_lora_weights.safetensors` makes the few-step model.
    An interrupted run goes on from its checkpoint.
    """
    with needs_torch():
        from sfumato.train.distill import run
        from sfumato.train.loop import Plan
    settings = run.Settings(method=method, guidance=guidance, rank=rank, few_steps=few_steps)
    with interruptible(lambda: GOES_ON):
        run.distill(source, data, out, settings, Plan(**plan), Progress(quiet).say)
    report(out / "pytorch_lora_weights.safetensors", as_json)


def report(folder: Path, as_json: bool) -> None:
    """Print where the result is; of several processes that trained together, the main one does."""
    if int(os.environ.get("RANK", "0")):
        return
    if as_json:
        print_json({"path": str(folder)})
    else:
        click.echo(folder)
