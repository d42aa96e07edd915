"""What the commands of `sfumato train` share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from sfumato.cli.common import Function
from sfumato.errors import MissingDependency

FOLDER = click.Path(path_type=Path)
DATA = Path("data/emoji")
GOES_ON = "the same command goes on from the last checkpoint"


def training_options(steps: int, batch: int, rate: float) -> Callable[[Function], Function]:
    """The options that every training run has, with its own defaults."""
    options = (
        click.option("--data", type=FOLDER, default=DATA, show_default=True, help="The rendered pictures."),
        click.option("--steps", type=click.IntRange(1), default=steps, show_default=True),
        click.option("--batch", type=click.IntRange(1), default=batch, show_default=True),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
        click.option("--rate", type=float, default=rate, show_default=True, help="Peak learning rate."),
    )

    def add(command: Function) -> Function:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@contextmanager
def needs_torch() -> Iterator[None]:
    """Name the extra to install where a training library is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"training needs the package {error.name!r}; install it with `pip install 'sfumato[train]'`"
        ) from error
