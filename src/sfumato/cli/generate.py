"""`sfumato generate`: pictures from a prompt."""

import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from sfumato.cli.output import Destination, png_path
from sfumato.cli.settings import RUNNING, SectionedCommand, picture_options, running_options
from sfumato.peak import peak_memory

if TYPE_CHECKING:
    from PIL.Image import Image

    from sfumato.runtime.parameters import Parameters
    from sfumato.runtime.progress import Step
    from sfumato.runtime.result import Result


@click.command(
    cls=SectionedCommand,
    epilog=example(
        'sfumato generate "noto red apple" --seed 7 -o apple.png',
        'sfumato generate "fluent smiling cat" --count 4 --steps 12 -o cats/',
        'sfumato generate "noto green apple" --image apple.png --strength 0.5',
        'sfumato generate "a harbour" -m sdxl --refiner sdxl-refiner --switch-at 0.8',
        "sfumato generate --from-image apple.png --steps 40",
    ),
)
@click.argument("prompt", required=False)
@click.option("-m", "--model", help="A model folder, or a name of `sfumato models`.  [default: mini]")
@click.option("-o", "--output", metavar="FILE|DIR", help="A .png file, or a folder.  [default: here]")
@click.option("--from-image", metavar="FILE", help="Repeat a picture, from the parameters that it carries.")
@click.option("--refiner", metavar="MODEL", help="A second model, which goes the last part of the way.")
@click.option("--switch-at", type=float, help="Share of the way before it takes over.  [default: 0.8]")
@running_options
@click.option(
    "--preview", type=png_path, metavar="FILE", help="Keep a small PNG of where the picture is going."
)
@click.option("--no-metadata", is_flag=True, help="Leave the parameters out of the PNG.")
@json_option
@quiet_option
@debug_option
@picture_options
def generate(
    prompt: str | None,
    model: str | None,
    output: str | None,
    from_image: str | None,
    refiner: str | None,
    switch_at: float | None,
    preview: Path | None,
    no_metadata: bool,
    as_json: bool,
    quiet: bool,
    device: tuple[str, ...],
    **settings: Any,
) -> None:
    """Make pictures of PROMPT and print their paths.

    (word:1.3) and [word] weight words, BREAK parts the prompt.
    """
    running = {name: settings.pop(name) for name in RUNNING} | {"device": device or "CPU"}
    if from_image is not None:
        from sfumato.runtime.parameters import merging

        prompt, carried, settings = _repeated(from_image, prompt, settings)
        if model is None:
            model, refiner = carried.settings.get("Model"), refiner or carried.settings.get("Refiner")
        if running["token_merging"] is None:
            running |= merging(carried)
        if refiner is None:
            settings.pop("switch_at", None)
    model = model or "mini"
    if prompt is None:
        raise click.UsageError("give a PROMPT, or a picture to repeat with --from-image")
    if switch_at is not None:
        settings["switch_at"] = switch_at
    destination = Destination(output, prompt)
    paths: list[Path] = []
    started = time.perf_counter()
    with interruptible(lambda: kept(paths)), destination.prepared(), Progress(quiet) as progress:
        from sfumato.runtime.build import build_request
        from sfumato.runtime.pipeline import Pipeline  # brings OpenVINO: not for --help or a mistyped option
        from sfumato.runtime.png import save_png

        pipeline = Pipeline.load(model, beside=[refiner] if refiner else [], **running)
        unmerged = running | {"token_merging": None}  # a refiner draws the details that merging costs
        second = Pipeline.load(refiner, beside=[model], **unmerged) if refiner else None
        manifest = pipeline.artifact.manifest
        request = build_request(manifest, prompt, settings)
        if preview is not None and manifest.latents.preview is None:
            progress.say(f"warning: no previews, {manifest.name} has no map for them; convert it again")
        loaded = time.perf_counter() - started
        calls = count(1)

        def on_step(step: "Step") -> None:
            progress.step(next(calls), step.images * step.steps)
            if preview is not None and (small := step.preview()) is not None:
                save_png(small, preview)

        def on_image(index: int, image: "Image", text: str) -> None:
            parameters = None if no_metadata else text
            paths.append(destination.save(image, request.seeds[index], index, request.count, parameters))

        result = pipeline.generate(request, on_step=on_step, on_image=on_image, refiner=second)
    seconds = result.seconds | {
        "load": result.seconds["load"] + loaded,
        "total": result.seconds["total"] + loaded,
    }
    if as_json:
        print_json(_report(result, paths, model, seconds))
        return
    stages = ", ".join(f"{stage} {value:.2f}" for stage, value in seconds.items() if stage != "total")
    progress.say(f"seed {result.seeds[0]}, {result.request.steps} steps, {seconds['total']:.2f} s ({stages})")
    for path in paths:
        click.echo(path)


def _repeated(
    picture: str, prompt: str | None, settings: dict[str, Any]
) -> tuple[str, "Parameters", dict[str, Any]]:
    """Prompt, all that the picture says, and settings; what is given goes first."""
    from sfumato.runtime.parameters import settings as of_request
    from sfumato.runtime.png import read_parameters

    carried = read_parameters(Path(picture))
    given = {name: value for name, value in settings.items() if value is not None}
    # Where a picture does not say it, it was made without, whatever this model does by itself.
    unsaid = {"reuse": "off", "guidance_every": 1}
    own = unsaid | {"negative_prompt": carried.negative_prompt} | of_request(carried)
    if "strength" in own and "image" not in given:
        click.echo(f"warning: {picture} was made from another picture: repeat it with --image", err=True)
        del own["strength"]
    if "outpaint" in given:
        own.pop("size", None)
    return carried.prompt if prompt is None else prompt, carried, own | given


def kept(paths: list[Path]) -> str:
    """What an interruption leaves: pictures that were done."""
    return f"kept {', '.join(map(str, paths))}" if paths else "nothing was written"


def _report(result: "Result", paths: list[Path], model: str, seconds: dict[str, float]) -> dict[str, Any]:
    width, height = result.request.size
    return {
        "images": [
            {"path": str(path), "seed": seed, "width": width, "height": height}
            for path, seed in zip(paths, result.seeds, strict=True)
        ],
        "model": model,
        "steps": result.request.steps,
        "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
        "peak_memory_bytes": peak_memory(),
    }
