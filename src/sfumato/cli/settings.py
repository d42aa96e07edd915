"""The options that say what a picture is to be, by sections of the help page."""

from collections.abc import Callable
from typing import Any

import click

from sfumato.cli.common import Function, size

PLACING = ("threads", "pinning", "cores", "precision", "memory")
RUNNING = (*PLACING, "token_merging", "merging_method")
SPACINGS = "karras, exponential, beta or ays"


class SectionedCommand(click.Command):
    """A command whose help lists options under headings; those without one come first."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class SectionedOption(click.Option):
    """An option that knows its heading."""

    def __init__(self, *args: Any, section: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


def numbers(count: int | None, kind: type) -> Callable[[str], tuple[Any, ...]]:
    """Read so many numbers (None: any number of them) with commas between."""

    def read(text: str) -> tuple[Any, ...]:
        try:
            values = tuple(kind(part) for part in text.split(","))
        except ValueError:
            values = ()
        if not values or count not in (None, len(values)):
            raise click.BadParameter(f"{text!r}: write numbers with commas between, and no spaces")
        return values

    return read


def borders(text: str) -> tuple[int, int, int, int]:
    """Read pixels to add on each side."""
    from sfumato.runtime.pictures import parse_borders  # brings Pillow

    return parse_borders(text)


def picture_options(command: Function) -> Function:
    """Options for what `build_request` takes; each is None where it is not given."""
    for section, options in reversed(OPTIONS.items()):
        for names, settings in reversed(options):
            command = click.option(*names, cls=SectionedOption, section=section, **settings)(command)
    return command


OPTIONS: dict[str, list[tuple[tuple[str, ...], dict[str, Any]]]] = {
    "Picture": [
        (("-n", "--negative", "negative_prompt"), {"metavar": "TEXT", "help": "What it should not show."}),
        (("--steps",), {"type": int, "help": "Sampling steps.  [default: the model's]"}),
        (("--guidance",), {"type": float, "help": "How closely to follow it.  [default: the model's]"}),
        (
            ("--size",),
            {"type": size, "metavar": "WxH", "help": "Pixels.  [default: the image's, the model's]"},
        ),
        (("--seed",), {"type": int, "help": "Same seed, same picture.  [default: random, reported]"}),
        (("--count",), {"type": int, "help": "Pictures to make; seeds count up.  [default: 1]"}),
    ],
    "From a picture": [
        (("--image",), {"metavar": "FILE", "help": "Begin from this picture."}),
        (
            ("--strength",),
            {"type": float, "help": "How far to leave it, 0 to 1.  [default: 0.6, 1 with a mask]"},
        ),
        (("--mask",), {"metavar": "FILE", "help": "Repaint what is white here; the rest stays to the bit."}),
        (
            ("--outpaint",),
            {
                "type": borders,
                "metavar": "PIXELS",
                "help": "Paint beyond its borders: 64, or 64,0,64,0 for left, top, right, bottom.",
            },
        ),
    ],
    "Prompt": [
        (
            ("--clip-skip",),
            {"type": int, "help": "Last CLIP layers to leave out; web UIs count one more.  [default: 0]"},
        ),
        (("--prompt-2",), {"metavar": "TEXT", "help": "The second text encoder's prompt."}),
        (("--prompt-3",), {"metavar": "TEXT", "help": "The third text encoder's prompt."}),
        (("--negative-2", "negative_prompt_2"), {"metavar": "TEXT", "help": "Its negative prompt."}),
        (("--negative-3", "negative_prompt_3"), {"metavar": "TEXT", "help": "Its negative prompt."}),
    ],
    "Sampling": [
        (("--sampler",), {"metavar": "NAME", "help": "How noise becomes a picture.  [default: the model's]"}),
        (("--spacing",), {"metavar": "NAME", "help": f"Noise levels: {SPACINGS}.  [default: the model's]"}),
        (("--shift",), {"type": float, "help": "Timestep shift of flow models.  [default: the model's]"}),
        (("--eta",), {"type": float, "help": "Fresh noise in each step, 0 to 1, where the sampler has it."}),
        (("--guidance-rescale",), {"type": float, "help": "Keep contrast at strong guidance, 0 to 1."}),
        (
            ("--guidance-interval",),
            {"type": numbers(2, float), "metavar": "LOW,HIGH", "help": "Guide between these sigmas only."},
        ),
        (
            ("--guidance-every",),
            {
                "type": int,
                "metavar": "N",
                "help": "After four steps, run the negative prompt in one of N; with reuse, at key steps."
                "  [default: the model's]",
            },
        ),
        (
            ("--skip-layers",),
            {
                "type": numbers(None, int),
                "metavar": "7,8,9",
                "help": "Guide away from a model without these layers (SD3.5).",
            },
        ),
        (("--skip-layers-scale",), {"type": float, "help": "How far.  [default: 2.8]"}),
        (
            ("--reuse",),
            {
                "metavar": "off|balanced|fast",
                "help": "Take deep features over from earlier steps.  [default: the model's]",
            },
        ),
    ],
}


def running_options(command: Function) -> Function:
    """Options for where and how to run: those of `Pipeline.load`."""
    return placing_options(merging_options(command))


def placing_options(command: Function) -> Function:
    """Options for where to run, and with how much memory."""
    options = [
        click.option(
            "--device",
            multiple=True,
            metavar="NAME",
            help="OpenVINO device: CPU, GPU, NPU, AUTO, HETERO:GPU,CPU; or for one network, as "
            "vae_decoder=GPU (repeat the option).  [default: CPU]",
        ),
        click.option("--threads", type=int, help="Processor threads.  [default: OpenVINO's choice]"),
        click.option(
            "--cores", metavar="performance|efficient", help="Only these, on processors that have both."
        ),
        click.option("--precision", metavar="f32|f16|bf16", help="Of arithmetic.  [default: the device's]"),
        click.option("--pin/--no-pin", "pinning", default=None, help="Whether threads keep to their cores."),
        click.option(
            "--memory",
            metavar="auto|low|high",
            default="auto",
            show_default=True,
            help="Low: one network at a time. High: all at once. Auto: high where the model fits well.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def merging_options(command: Function) -> Function:
    """Options for attention on fewer tokens."""
    options = [
        click.option(
            "--token-merging",
            type=float,
            metavar="R",
            help="Share of the tokens, 0 to 0.75, that attention does without: faster, with less detail.",
        ),
        click.option(
            "--merging-method",
            metavar="match|pool",
            default="match",
            show_default=True,
            help="Merge the most similar tokens, or average keys and values.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command
