"""`sfumato ui`: a page in the browser to make pictures, compare models, and make models smaller."""

import signal
import sys
from typing import Any

import click

from sfumato.cli.common import debug_option, example, json_option, print_json, quiet_option
from sfumato.cli.settings import placing_options

LOCAL = ("127.0.0.1", "localhost", "::1")


@click.command(
    epilog=example(
        "sfumato ui",
        "sfumato ui ./sd15-int8 ./sd15-fp16 --output pictures/",
        "SFUMATO_PASSWORD=secret sfumato ui mini --host 0.0.0.0 --port 8080",
    )
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), help="[default: the first free one from 7860 on]")
@click.option("-o", "--output", metavar="DIR", help="Keep the pictures here.  [default: until it ends]")
@click.option(
    "--password",
    envvar="SFUMATO_PASSWORD",
    show_envvar=True,
    help="Ask for it before anything else; better given in the environment, where no list shows it.",
)
@click.option(
    "--at-once",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Generations with one model at the same time.",
)
@click.option(
    "--waiting",
    type=click.IntRange(0, 1000),
    default=16,
    show_default=True,
    help="Most that may wait for one.",
)
@click.option(
    "--jobs/--no-jobs", default=None, help="The tab that converts and optimizes.  [default: locally]"
)
@click.option("--open", "opens", is_flag=True, help="Open the page in the browser.")
@placing_options
@json_option
@quiet_option
@debug_option
def ui(
    models: tuple[str, ...],
    host: str,
    port: int | None,
    output: str | None,
    password: str | None,
    at_once: int,
    waiting: int,
    jobs: bool | None,
    opens: bool,
    as_json: bool,
    quiet: bool,
    device: tuple[str, ...],
    **placing: Any,
) -> None:
    """Show a page to make pictures with MODELs (folders, or names of `sfumato models`) and compare them.

    All models that have a name here are offered as well; the first MODEL is the default. Nothing of the page
    comes from elsewhere, and nothing is sent elsewhere. The tab that converts and optimizes reads and writes
    this machine's files: it is left out where others can reach the page, unless there is a password.
    """
    from sfumato.serve.ui.run import Settings, run  # brings OpenVINO: not for --help

    settings = Settings(
        models=models,
        host=host,
        port=port,
        output=output,
        password=password or None,
        at_once=at_once,
        waiting=waiting,
        jobs=jobs if jobs is not None else host in LOCAL or bool(password),
        pipeline=placing | {"device": device or "CPU"},
    )
    _ends_by_signals()
    run(settings, lambda address: _ready(address, as_json, quiet, opens))


def _ends_by_signals() -> None:
    """Let SIGTERM end the page in order, and Ctrl-C also where a script started it in the background."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _ready(address: str, as_json: bool, quiet: bool, opens: bool) -> None:
    if as_json:
        print_json({"url": address})
        sys.stdout.flush()
    elif not quiet:
        click.echo(f"{address}  (Ctrl-C ends it)", err=True)
    if opens:
        click.launch(address)
