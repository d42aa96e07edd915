"""`sfumato generate`: pictures from a prompt."""

import resource
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from sfumato import __version__
from sfumato.cli.common import Progress, debug_option, example, json_option, print_json, quiet_option, size
from sfumato.cli.output import Destination, parameters_text

if TYPE_CHECKING:
    from pathlib import Path

    from sfumato.runtime.pipeline import Result


@click.command(
    epilog=example(
        'sfumato generate "noto red apple" --seed 7 -o apple.png',
        'sfumato generate "fluent smiling cat" --count 4 --steps 12 -o cats/',
    )
)
@click.argument("prompt")
@click.option("-m", "--model", default="mini", show_default=True, help="A model folder or embedded name.")
@click.option("-n", "--negative", metavar="TEXT", help="What the picture should not show.")
@click.option("--steps", type=int, help="Sampling steps.  [default: the model's]")
@click.option("--guidance", type=float, help="How closely to follow the prompt.  [default: the model's]")
@click.option("--size", type=size, metavar="WxH", help="Pixels, as 128x128.  [default: the model's]")
@click.option("--seed", type=int, help="Same seed, same picture.  [default: random, reported]")
@click.option("--count", type=int, default=1, show_default=True, help="Pictures to make; seeds count up.")
@click.option("--sampler", metavar="NAME", help="How noise becomes a picture.  [default: the model's]")
@click.option("--device", default="CPU", show_default=True, help="The OpenVINO device to run on.")
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
    output: str | None,
    no_metadata: bool,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Make pictures of PROMPT and print their paths."""
