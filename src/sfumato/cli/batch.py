"""`sfumato batch`: pictures of many requests, with the model loaded once."""

import os
import time
from dataclasses import dataclass, field
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
from sfumato.cli.output import Destination, slug
from sfumato.cli.settings import running_options
from sfumato.errors import SfumatoError
from sfumato.files import expanded

if TYPE_CHECKING:
    from sfumato.runtime.batch import BadLine, Batch, Line
    from sfumato.runtime.progress import Step

MAX_REPORTED = 100
"""Failures in the JSON report; all of them are on standard error."""


@click.command(epilog=example("sfumato batch prompts.jsonl -o pictures/"))
@click.argument("file", type=click.Path(path_type=Path), metavar="PROMPTS.jsonl")
@click.option("-o", "--output", required=True, metavar="DIR", help="The folder to fill.")
@click.option(
    "-m", "--model", default="mini", show_default=True, help="A model folder, or a name of `sfumato models`."
)
@running_options
@json_option
@quiet_option
@debug_option
def batch(
    file: Path,
    output: str,
    model: str,
    device: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **running: Any,
) -> None:
    """Make the pictures of PROMPTS.jsonl and print their paths.

    Each line is a JSON object with "prompt" and, where wanted, negative_prompt, steps, guidance, size, seed,
    count, sampler and other parameters, and "name" for its file. A line without a seed has one of its own.
    The same command again makes what is missing, and nothing twice.
    """
    file = expanded(file)
    destination = Destination(os.path.join(output, ""), "")  # noqa: PTH118 (a Path has no trailing separator)
    run = _Run(destination.folder, print_paths=not as_json)
    with interruptible(run.so_far), destination.prepared(), Progress(quiet) as progress:
        from sfumato.runtime.batch import Batch, count_lines, open_lines, read_lines
        from sfumato.runtime.pipeline import Pipeline  # brings OpenVINO: not for --help or a mistyped option

        with open_lines(file) as source:
            pipeline = Pipeline.load(model, device=device or "CPU", **running)
            made = Batch(pipeline, destination.folder, slug)
            total = count_lines(file)
            for line in read_lines(source, file.parent):
                run.take(line, made, progress, total)
        progress.close()
        progress.say(run.summary())
    if as_json:
        print_json(run.report(model))
    if run.failed:
        raise SfumatoError(
            f"{_lines(run.failed)} failed, as said above; correct them and run the same command again"
        )


@dataclass
class _Run:
    """What has come of the lines so far."""

    folder: Path
    print_paths: bool
    done: int = 0
    skipped: int = 0
    failed: int = 0
    pictures: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def take(self, line: "Line | BadLine", made: "Batch", progress: Progress, total: int | None) -> None:
        """Make one line's pictures, or say why not."""
        from sfumato.runtime.batch import BadLine, WriteFailed

        def on_step(step: "Step") -> None:
            done, steps = step.image * step.steps + step.index + 1, step.images * step.steps
            if total is None:
                progress.step(done, steps, f"line {line.number}, step")
            else:
                progress.step(line.number - 1, total, f"step {done}/{steps}, lines")

        if isinstance(line, BadLine):
            self._fail(line.number, line.reason)
            return
        try:
            new = made.make(line, on_step, self._saved)
        except WriteFailed:
            raise
        except SfumatoError as error:
            self._fail(line.number, str(error))
            return
        self.done, self.skipped = self.done + (new > 0), self.skipped + (new == 0)

    def _saved(self, path: Path) -> None:
        self.pictures += 1
        if self.print_paths:
            click.echo(path)

    def _fail(self, number: int, reason: str) -> None:
        reason = " ".join(reason.split())
        click.echo(f"line {number}: {reason}", err=True)
        self.failed += 1
        if len(self.failures) < MAX_REPORTED:
            self.failures.append({"line": number, "error": reason})

    def so_far(self) -> str:
        """What an interruption leaves."""
        ready = _lines(self.done + self.skipped)
        return f"{ready} done, pictures in {self.folder}; the same command goes on from there"

    def summary(self) -> str:
        before = f", {_lines(self.skipped)} done before" if self.skipped else ""
        failed = f", {_lines(self.failed)} failed" if self.failed else ""
        seconds = time.perf_counter() - self.started
        return f"{_lines(self.done)} done{before}{failed}, new pictures: {self.pictures}, {seconds:.2f} s"

    def report(self, model: str) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "model": model,
            "pictures": self.pictures,
            "lines": {"done": self.done, "done_before": self.skipped, "failed": self.failed},
            "failures": self.failures,
            "seconds": round(time.perf_counter() - self.started, 4),
        }


def _lines(count: int) -> str:
    return "1 line" if count == 1 else f"{count} lines"
