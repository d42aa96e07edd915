"""What the commands share: lazy groups, options, a size on the command line, progress on standard error."""

import difflib
import importlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from sfumato.runtime.parameters import parse_size
from sfumato.units import duration

DEBUG = "sfumato.debug"
Function = TypeVar("Function", bound=Callable[..., Any])


class HelpfulGroup(click.Group):
    """A group that answers an unknown command with the nearest one, or with those there are."""

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, known = arguments[0], self.list_commands(context)
        if name not in known and not name.startswith("-"):
            raise click.UsageError(f"no command {name!r}{did_you_mean(name, known)}", context)
        return super().resolve_command(context, arguments)


class LazyGroup(HelpfulGroup):
    """A group whose commands are imported when they run; help comes from the table.

    table: name -> ("module:attribute", one line of help).
    """

    def __init__(self, *args: Any, table: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self.table:
            return None
        module, attribute = self.table[name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.table.items()])


def did_you_mean(name: str, known: list[str]) -> str:
    """`; did you mean 'generate'?`, or what there is when nothing is near."""
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there is: {', '.join(known)}"


def example(*lines: str) -> str:
    """An epilog that click leaves unwrapped."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def _remember_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.meta[DEBUG] = True
        logging.getLogger("sfumato").setLevel(logging.INFO)


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_remember_debug,
    help="Show the log, and the traceback of an error.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on standard output and nothing else there."
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress on standard error.")


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def size(text: str) -> tuple[int, int]:
    """Read `WIDTHxHEIGHT` in pixels."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: {error}") from error


@contextmanager
def interruptible(state: Callable[[], str]) -> Iterator[None]:
    """Let Ctrl-C in the block end the command with "interrupted; " and what `state` says of its files."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(state()) from stop


class Progress:
    """How far the work is, on standard error: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._what = ""
        self._next = 0.0
        self._pace = _Pace()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, text: str) -> None:
        if not self._quiet:
            click.echo(text, err=True)

    def stage(self, text: str, done: int, total: int) -> None:
        """Report that `text` begins now, after `done` of `total` stages: a line for each."""
        if self._quiet:
            return
        if sys.stderr.isatty():
            self._draw(done, total, text)
        else:
            click.echo(f"{text} ({done + 1}/{total})", err=True)

    def step(self, done: int, total: int, what: str = "step") -> None:
        """Report that `done` of `total` are behind us; closes the bar at the end.

        Lines come at most twice a second, and the rarer the longer the work goes on, down to six a minute.
        """
        if self._quiet:
            return
        left = self._pace.left(done, total)
        if sys.stderr.isatty():
            self._draw(done, total, what)
        elif done == total or time.monotonic() > self._next:
            self._next = time.monotonic() + min(max(0.5, self._pace.gone() / 20), 10)
            click.echo(f"{what} {done}/{total}{f', {duration(left)} left' if left else ''}", err=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar, self._what = None, ""

    def _draw(self, done: int, total: int, what: str) -> None:
        from tqdm import tqdm

        if self._bar is not None and self._bar.total != total:
            self.close()
        if self._bar is None:
            self._bar = tqdm(total=total, desc=what, unit="", leave=False, file=sys.stderr)
        if what == self._what:
            self._bar.update(done - self._bar.n)
        else:
            self._bar.n, self._what = done, what
            self._bar.set_description(what)
        if done >= total:
            self.close()


class _Pace:
    """How long the rest takes if it goes on as since the first report."""

    def __init__(self) -> None:
        self._first, self._last, self._since = 0, 0, 0.0

    def left(self, done: int, total: int) -> float | None:
        """Seconds to the end; None at the beginning and the end. Fewer done than before is a new start."""
        now = time.monotonic()
        if done < self._last or not self._since:
            self._first, self._since = done, now
        self._last = done
        if not self._first < done < total:
            return None
        return (now - self._since) / (done - self._first) * (total - done)

    def gone(self) -> float:
        """Seconds since the first report."""
        return time.monotonic() - self._since
