"""One job: what is known of it, and what became of it."""

import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...artifact import MANIFEST
from ...errors import Cancelled, SfumatoError
from ...files import atomic_folder
from .child import Account, Ended

Kind = Literal["convert", "optimize"]
State = Literal["waiting", "running", "done", "failed", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as it stood when it was looked at.

    name: of the model that it makes. progress: share that is done, 0 to 1, None where it is not known.
    stage: what it does now. seconds: how long it has run. left: seconds to the end of what it does now, where
    known. log: the last lines that it said. result: what the command printed. error: why it failed, one line.
    """

    id: int
    kind: Kind
    title: str
    name: str
    state: State
    progress: float | None
    stage: str
    seconds: float
    left: float | None
    log: tuple[str, ...]
    result: dict[str, Any] | None
    error: str | None

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state not in ("waiting", "running")


@dataclass(kw_only=True, eq=False)
class Task:
    """A job under way; whoever holds it sees to it that one thread at a time changes it."""

    id: int
    kind: Kind
    title: str
    out: Path
    arguments: list[str]
    state: State = "waiting"
    account: Account = field(default_factory=Account)
    stop: threading.Event = field(default_factory=threading.Event)
    began: float = 0.0
    seconds: float = 0.0
    result: dict[str, Any] | None = None
    error: str | None = None

    def seen(self) -> Job:
        running = self.state == "running"
        stage = ("stopping" if self.stop.is_set() else self.account.stage or "starting") if running else ""
        return Job(
            id=self.id,
            kind=self.kind,
            title=self.title,
            name=self.out.name,
            state=self.state,
            progress=1.0 if self.state == "done" else self.account.progress,
            stage=stage,
            seconds=time.monotonic() - self.began if running else self.seconds,
            left=self.account.left if running else None,
            log=tuple(self.account.log),
            result=self.result,
            error=self.error,
        )

    @property
    def open(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("waiting", "running")

    def begin(self) -> None:
        """Its turn has come."""
        self.state, self.began = "running", time.monotonic()

    def end(self, state: State, error: str | None, result: dict[str, Any] | None) -> None:
        """It has ended."""
        self.state, self.error, self.result = state, error, result
        self.seconds = time.monotonic() - self.began

    def interrupt(self) -> None:
        """Take it out of the line where it waits; where it runs, ask it to end."""
        if self.state == "waiting":
            self.state = "stopped"
        self.stop.set()


def verdict(task: Task, ended: Ended) -> tuple[State, str | None, dict[str, Any] | None]:
    """What became of a job, why it failed, and what it printed. What a killed one left is removed."""
    if ended.result is not None:
        return "done", None, ended.result
    if ended.code < 0:
        _remove_leftovers(task.out)
    if task.stop.is_set():
        return "stopped", None, None
    return "failed", _reason(task, ended.code), None


def _reason(task: Task, code: int) -> str:
    """Why a job failed, in one line."""
    written = f"{task.out} is complete" if (task.out / MANIFEST).is_file() else "nothing was written"
    if code == -signal.SIGKILL:
        return f"ended by signal 9, as when memory runs out; {written}"
    if code < 0:
        return f"ended by signal {-code}; {written}"
    return task.account.complaint or f"ended with exit code {code}; {written}"


def _remove_leftovers(target: Path) -> None:
    """Remove what a killed command left beside its target, as the next command with that target would."""
    with suppress(SfumatoError), atomic_folder(target):
        raise Cancelled(f"{target}: not to be written")
