"""`sfumato train`: commands that need PyTorch, which is imported when one of them runs."""

from pathlib import Path

import click

from sfumato.cli.common import Progress, debug_option, example, json_option, print_json, quiet_option


@click.group()
@debug_option
def train() -> None:
    """Train models (needs the `train` extra: pip install 'sfumato[train]')."""


@train.group()
@debug_option
def embedded() -> None:
    """Train the models that ship with Sfumato, from scratch, on icons with permissive licences."""


@embedded.command(epilog=example("sfumato train embedded data data/emoji"))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
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
