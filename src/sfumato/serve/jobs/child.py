"""A command in a process of its own: what it says as it goes, how far it is, and its end."""

import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TextIO

GRACE = 10.0
"""Seconds for an interrupted command to clean up."""
LOOK = 0.1
MOST_LINES, LONGEST_LINE = 500, 1000
MOST_PRINTED = 2**20
STAGE = re.compile(r"(?P<text>.+) \((?P<number>\d+)/(?P<total>[1-9]\d*)\)")
STEP = re.compile(r"(?P<what>[^\d/]+) (?P<done>\d+)/(?P<total>[1-9]\d*)(?:, (?P<left>.+) left)?")
UNITS = {"d": 86400, "h": 3600, "min": 60, "s": 1}


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or minus the signal's number; what it printed."""

    code: int
    printed: str

    @property
    def result(self) -> dict[str, Any] | None:
        """The JSON object that it printed; None where it failed, or printed anything else."""
        with suppress(ValueError):
            document = json.loads(self.printed)
            if self.code == 0 and isinstance(document, dict):
                return document
        return None


class Account:
    """What a command has said, and how far it is by that; its lines are those of `cli.common.Progress`.

    log: the last lines. progress: share of the whole, 0 to 1; None before anything is known.
    """

    def __init__(self) -> None:
        self.log: deque[str] = deque(maxlen=MOST_LINES)
        self.progress: float | None = None
        self.stage = ""
        self._stage, self._stages = 0, 1
        self._end: float | None = None

    def hear(self, line: str) -> None:
        """Take note of a line."""
        self.log.append(line)
        if found := STAGE.fullmatch(line):
            self._stage, self._stages = int(found["number"]) - 1, int(found["total"])
            self.stage = found["text"]
            self._reached(0.0, None)
        elif found := STEP.fullmatch(line):
            self.stage = self.stage or found["what"]
            self._reached(int(found["done"]) / int(found["total"]), found["left"])

    @property
    def left(self) -> float | None:
        """Seconds to the end of the steps that were told of last; None where it is not known."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    @property
    def complaint(self) -> str | None:
        """The line that says why the command failed."""
        said = (line for line in reversed(self.log) if line.startswith(("error: ", "interrupted")))
        line = next(said, None)
        return None if line is None else line.removeprefix("error: ")

    def _reached(self, share: float, left: str | None) -> None:
        self.progress = min(1.0, (self._stage + share) / self._stages)
        self._end = None if left is None else time.monotonic() + _seconds(left)


def run_child(command: Sequence[str], hear: Callable[[str], None], stop: threading.Event) -> Ended:
    """Run a command to its end. hear: told each line of its standard error, by another thread.

    Once `stop` is set, the command and all that it started are interrupted, and killed after GRACE seconds.
    """
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.PIPE,
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
            env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        )
        try:
            assert process.stderr is not None
            reader = threading.Thread(target=_read, args=(process.stderr, hear), daemon=True)
            reader.start()
            _wait(process, stop)
        finally:
            _signal(process, signal.SIGKILL)  # also what it started and left behind
            code = process.wait()
        reader.join(GRACE)
        printed.seek(0)
        return Ended(code, printed.read(MOST_PRINTED).decode(errors="replace"))


def _wait(process: subprocess.Popen[str], stop: threading.Event) -> None:
    while process.poll() is None and not stop.wait(LOOK):
        pass
    if process.poll() is None:
        _signal(process, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to the process and all that it started."""
    with suppress(ProcessLookupError, PermissionError):  # the second is macOS's word for zombies
        os.killpg(process.pid, number)


def _read(stream: TextIO, hear: Callable[[str], None]) -> None:
    with stream:
        for line in lines(stream):
            hear(line)


def lines(stream: TextIO) -> Iterator[str]:
    """Lines that are not empty, each cut at LONGEST_LINE characters; the rest is never held in memory."""
    begins = True
    while piece := stream.readline(LONGEST_LINE):
        if begins and piece.strip():
            yield piece.rstrip()
        begins = piece.endswith("\n")


def _seconds(text: str) -> int:
    """Of a `units.duration`, such as `3 h 20 min`."""
    return sum(int(count) * UNITS[unit] for count, unit in re.findall(r"(\d+) (d|h|min|s)\b", text))
