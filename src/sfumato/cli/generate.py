"""`sfumato generate`: pictures from a prompt."""

import sys
import time
from contextlib import suppress
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
    size,
)
from sfumato.cli.output import Destination

if TYPE_CHECKING:
    from PIL.Image import Image

    from sfumato.runtime.pipeline import Result
    from sfumato.runtime.progress import Step


@click.command(
    epilog=example(
        'sfumato generate "noto red apple" --seed 7 -o apple.png',
        'sfumato generate "fluent smiling cat" --count 4 --steps 12 -o cats/',
    )
)
@click.argument("prompt")
@click.option(
    "-m", "--model", default="mini", show_default=True, help="A model folder, or a name of `sfumato models`."
)
@click.option("-n", "--negative", metavar="TEXT", help="What the picture should not show.")
@click.option("--steps", type=int, help="Sampling steps.  [default: the model's]")
@click.option("--guidance", type=float, help="How closely to follow the prompt.  [default: the model's]")
@click.option("--size", type=size, metavar="WxH", help="Pixels, as 128x128.  [default: the model's]")
@click.option("--seed", type=int, help="Same seed, same picture.  [default: random, reported]")
@click.option("--count", type=int, default=1, show_default=True, help="Pictures to make; seeds count up.")
@click.option("--sampler", metavar="NAME", help="How noise becomes a picture.  [default: the model's]")
@click.option("--device", default="CPU", show_default=True, help="The OpenVINO device to run on.")
@click.option(
    "--memory",
    metavar="auto|low|high",
    default="auto",
    show_default=True,
    help="Low: one network at a time. High: all at once. Auto: high where the model fits well.",
)
@click.option("-o", "--output", metavar="FILE|DIR", help="A .png file, or a folder.  [default: here]")
@click.option("--no-metadata", is_flag=True, help="Leave the parameters out of the PNG.")
@json_option
@quiet_option
@debug_option
def generate(
    prompt: str,
    model: str,
    negative: str | None,
    count: int,
    device: str,
    memory: str,
    output: str | None,
    no_metadata: bool,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Make pictures of PROMPT and print their paths."""
    destination = Destination(output, prompt)
    paths: list[Path] = []
    started = time.perf_counter()
    with interruptible(lambda: kept(paths)), destination.prepared(), Progress(quiet) as progress:
        from sfumato.runtime.pipeline import Pipeline  # brings OpenVINO: not for --help or a mistyped option
        from sfumato.runtime.request import build_request

        pipeline = Pipeline.load(model, device=device, memory=memory)
        manifest = pipeline.artifact.manifest
        request = build_request(manifest, prompt, {"negative_prompt": negative, "count": count, **settings})
        loaded = time.perf_counter() - started

        def on_step(step: "Step") -> None:
            progress.step(step.image * step.steps + step.index + 1, step.images * step.steps)

        def on_image(index: int, image: "Image") -> None:
            parameters = None if no_metadata else request.parameters(index, manifest.name)
            paths.append(destination.save(image, request.seeds[index], index, count, parameters))

        result = pipeline.generate(request, on_step=on_step, on_image=on_image)
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
        "peak_memory_bytes": _peak_memory(),
    }


def _peak_memory() -> int:
    """Largest resident memory of this process in bytes."""
    # Linux alone has this file; its ru_maxrss counts what the starting process had, too.
    with suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    import resource  # POSIX only: imported here so that generating works without it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kilobytes
