"""`sfumato compare`: models side by side, as a page and as figures."""

from typing import Any

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
from sfumato.cli.settings import numbers
from sfumato.files import expanded


@click.command(
    epilog=example(
        "sfumato compare ./sd15 ./sd15-int8 -o report/",
        "sfumato compare ./sd15-int8 --reference torch:./stable-diffusion-v1-5 --steps 20 -o report/",
        "sfumato compare 'torch:./sd35?quant=nf4' --reference torch:./sd35 -o report/",
        "sfumato compare mini --token-merging 0.2,0.4,0.6 -o report/",
        "sfumato compare ./sd15 ./sd15-int8 --reuse balanced,fast -o report/",
        "sfumato compare mini ./mini-int8 --prompts prompts.txt --size 128x128 -o report/ --json",
    )
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("-o", "--output", required=True, metavar="DIR", help="The folder to make.")
@click.option(
    "--reference",
    metavar="MODEL|torch:SOURCE",
    help="What the others are held against, a MODEL or one more.  [default: the first MODEL]",
)
@click.option(
    "--prompts",
    metavar="FILE",
    help="A prompt a line; or a set that ships, general or icons.  [default: the set that suits the models]",
)
@click.option("--count", type=int, help="How many of them.  [default: all of a FILE, 10 of a set]")
@click.option("--steps", type=int, help="Sampling steps.  [default: the reference's]")
@click.option("--size", type=size, metavar="WxH", help="Pixels.  [default: the reference's]")
@click.option("--guidance", type=float, help="How closely to follow the prompt.  [default: the reference's]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first picture; it counts up.")
@click.option("--device", default="CPU", show_default=True, metavar="NAME", help="OpenVINO device.")
@click.option("--threads", type=int, help="Processor threads.  [default: OpenVINO's choice]")
@click.option("--precision", metavar="f32|f16|bf16", help="Of arithmetic.  [default: the device's]")
@click.option(
    "--memory", metavar="auto|low|high", default="auto", show_default=True, help="As for `sfumato generate`."
)
@click.option(
    "--token-merging",
    type=numbers(None, float),
    metavar="0.3,0.5",
    help="Each MODEL as it is, and with these shares of its tokens merged.",
)
@click.option("--merging-method", metavar="match|pool", default="match", show_default=True, help="How.")
@click.option(
    "--reuse",
    metavar="off,balanced,fast",
    help="Each MODEL as it is, and with these ways to reuse between steps.",
)
@json_option
@quiet_option
@debug_option
def compare(
    models: tuple[str, ...],
    output: str,
    reference: str | None,
    prompts: str | None,
    count: int | None,
    steps: int | None,
    size: tuple[int, int] | None,
    guidance: float | None,
    seed: int,
    device: str,
    threads: int | None,
    precision: str | None,
    memory: str,
    token_merging: tuple[float, ...] | None,
    merging_method: Any,
    reuse: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make the same pictures with every MODEL and show what they cost and how they differ.

    MODEL is a model folder, a name of `sfumato models`, or torch:CHECKPOINT, a checkpoint in PyTorch
    (float32, on the CPU). After that may come ?quant=nf4|int8|int4|fp8, &device=cuda, &offload=model,
    &dtype=bf16, &compile=1, &t5=0: quote it for the shell.

    DIR gets report.html (one page that needs nothing else), report.json and the pictures.
    """
    out = expanded(output)
    with interruptible(lambda: "nothing was written"), Progress(quiet) as progress:
        from sfumato.compare import compare as compare_models
        from sfumato.compare.report import HTML, JSON
        from sfumato.compare.wording import sentences

        report = compare_models(
            models,
            out,
            reference=reference,
            prompts=prompts,
            count=count,
            steps=steps,
            size=size,
            guidance=guidance,
            seed=seed,
            device=device,
            threads=threads,
            precision=precision,
            memory=memory,
            token_merging=token_merging or (),
            merging_method=merging_method,
            reuse=() if reuse is None else reuse.split(","),
            on_progress=lambda text, done, total: progress.step(done, total, text),
        )
    if as_json:
        paths = {"html": str(out / HTML), "json": str(out / JSON), "folder": str(out)}
        print_json({"paths": paths, **report.model_dump(mode="json")})
        return
    for sentence in sentences(report):
        progress.say(sentence)
    click.echo(out / HTML)
