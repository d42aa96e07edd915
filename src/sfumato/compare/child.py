"""The process behind a Worker: holds one model, answers lines of JSON with lines of JSON."""

import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from ..errors import SfumatoError
from ..peak import peak_memory
from .records import Model, Run
from .worker import TORCH

if TYPE_CHECKING:
    from PIL.Image import Image

    from .profile import Profile

Json = dict[str, Any]


class Engine(Protocol):
    """A loaded model that times its pictures. load_seconds: loading that was left to the first of them."""

    model: Model
    load_seconds: float

    def generate(
        self,
        prompt: str,
        *,
        negative: str | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
    ) -> "tuple[Image, Run]":
        """One picture, and what it took."""

    def profile(self) -> "Profile":
        """Where the time of a picture goes."""


class _Kept(logging.Handler):
    """Keeps warnings for the next answer."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def taken(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


def main() -> None:
    """Serve standard input until it ends. What libraries print on standard output goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, answers)


def serve(questions: Iterable[str], answers: TextIO) -> None:
    """The first line says what to load, each further one asks for a picture or the profile.

    Every line is answered by one. Nothing more is served where loading fails.
    """
    kept = _Kept()
    logging.getLogger("sfumato").addHandler(kept)
    lines = (json.loads(line) for line in questions)

    def answer(work: Callable[[], Json]) -> bool:
        document = _attempt(work)
        answers.write(json.dumps({**document, "warnings": kept.taken()}) + "\n")
        answers.flush()
        return "error" not in document

    session: list[Session] = []

    def load() -> Json:
        session.append(Session(**next(lines)))
        return {"model": session[0].engine.model.model_dump(mode="json"), **session[0].figures}

    if answer(load):
        for question in lines:
            answer(lambda question=question: session[0].answer(question))  # type: ignore[misc]


class Session:
    """One model, from its loading on."""

    def __init__(self, source: str, name: str, profiled: bool, running: Json) -> None:
        began = time.perf_counter()
        self.engine = _opened(source, name, profiled, running)
        self._opening = time.perf_counter() - began

    @property
    def figures(self) -> Json:
        """What every answer tells: seconds of loading, libraries among them, and the peak of memory."""
        return {
            "load_seconds": self._opening + self.engine.load_seconds,
            "peak_memory_bytes": peak_memory(),
        }

    def answer(self, question: Json) -> Json:
        """Make the picture that is asked for, or tell the profile."""
        if question.pop("profile", False):
            return {"profile": self.engine.profile().model_dump(mode="json")}
        out = question.pop("out")
        image, run = self.engine.generate(**question)
        figures = self.figures  # before the file: encoding a PNG is no part of it
        if out is not None:
            from ..runtime.png import save_png

            save_png(image, Path(out))
        return {"run": run.model_dump(mode="json"), **figures}


def _opened(source: str, name: str, profiled: bool, running: Json) -> Engine:
    if source.startswith(TORCH):
        from ..torch_backend import TorchPipeline

        return TorchPipeline.load(source.removeprefix(TORCH), name=name, threads=running["threads"])
    from .artifact_engine import ArtifactEngine

    return ArtifactEngine(source, name, profiled=profiled, **running)


def _attempt(work: Callable[[], Json]) -> Json:
    """What came of it, or the error: its class, exit code and message."""
    try:
        return work()
    except SfumatoError as error:
        kind, message = type(error).__name__, str(error)
    except Exception as error:
        kind, message = SfumatoError.__name__, f"unexpected {type(error).__name__}: {error}"
    traceback.print_exc()
    return {"error": {"kind": kind, "message": " ".join(message.split())}}


if __name__ == "__main__":
    main()
