"""The `sfumato` command: a table of commands, each imported when it is used, and the way errors are shown."""

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

import click

from sfumato import __version__
from sfumato.cli.common import DEBUG, LazyGroup, debug_option, example
from sfumato.errors import SfumatoError
from sfumato.offline import fetch_no_kernels

COMMANDS = {
    "generate": ("sfumato.cli.generate:generate", "Make pictures from a prompt."),
    "batch": ("sfumato.cli.batch:batch", "Make the pictures of many requests."),
    "convert": ("sfumato.cli.convert:convert", "Turn a checkpoint into a model folder."),
    "optimize": ("sfumato.cli.optimize:optimize", "Make a model smaller and faster by a recipe."),
    "recipes": ("sfumato.cli.recipes:recipes", "List and show the recipes of optimize."),
    "compare": ("sfumato.cli.compare:compare", "Hold models side by side."),
    "bench": ("sfumato.cli.bench:bench", "Measure time, memory and size of models."),
    "ui": ("sfumato.cli.ui:ui", "Show a page to make pictures and compare models."),
    "models": ("sfumato.cli.models:models", "List, inspect and verify models."),
    "train": ("sfumato.cli.train:train", "Train models."),
}

CHATTY = ("torchao", "bitsandbytes", "torch.utils._pytree")
"""What diffusers imports where it is installed, and what that says of GPU kernels at each start."""


@click.group(cls=LazyGroup, table=COMMANDS, epilog=example('sfumato generate "noto red apple" --seed 7'))
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
@debug_option
def cli() -> None:
    """Small, fast Stable Diffusion pipelines for the machine you already have."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failure, 2 bad input."""
    _quiet_libraries()
    context: click.Context | None = None
    try:
        context = cli.make_context("sfumato", list(sys.argv[1:] if arguments is None else arguments))
        with context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as bare:
        click.echo(bare.ctx.get_help() if bare.ctx else bare.message, err=True)
        return 2
    except BrokenPipeError:
        # The reader (`| head`) has gone: the interpreter's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if context is not None and context.meta.get(DEBUG):
            traceback.print_exc()
        message, code = _explain(error)
        click.echo(" ".join(message.split()), err=True)
        return code
    return 0


def _explain(error: BaseException) -> tuple[str, int]:
    """One line for a person, and the exit code."""
    match error:
        case SfumatoError():
            return f"error: {error}", error.exit_code
        case click.UsageError():
            where = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
            return f"error: {error.format_message()}{where}", 2
        case click.ClickException():
            return f"error: {error.format_message()}", error.exit_code
        case KeyboardInterrupt() | click.Abort():
            return f"interrupted; {error}".rstrip("; "), 1
        case _:
            return f"error: unexpected {type(error).__name__}: {error}; run with --debug for the traceback", 1


class _Notes(logging.Handler):
    """Sfumato's own log as one line each on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"{record.levelname.lower()}: {record.getMessage()}", err=True)


def _quiet_libraries() -> None:
    """Warnings of other libraries are for their developers; `python -W default` still shows them."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    fetch_no_kernels()
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    log = logging.getLogger("sfumato")
    log.handlers = [_Notes()]
    log.setLevel(logging.NOTSET)
