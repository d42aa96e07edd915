"""A process of its own for each model that is measured: memory is the model's alone, and models alternate."""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from .. import errors
from ..errors import SfumatoError
from ..manifest import Reuse
from .records import Model, Run

if TYPE_CHECKING:
    from .profile import Profile

TORCH = "torch:"
PATIENCE = 5.0
"""Seconds for a process to end by itself."""
log = logging.getLogger(__name__)


class Worker:
    """One model in a child process, which lives as long as the `with` block.

    source: a model folder, the name of a model, or "torch:CHECKPOINT" for a diffusers folder in PyTorch, in
        float32 on the CPU unless options follow, as in "torch:CHECKPOINT?quant=nf4&device=cuda".
    name: what to call it; by default what `source` ends with.
    device, precision, threads, pinning, cores, memory, token_merging, merging_method: as for
        `Pipeline.load`. reuse: of every picture, the model's own where it is None. Of all these a checkpoint
        heeds threads alone.
    profiled: have OpenVINO count the time of each operation, which slows it a little; see `profile`.

    Its compiled networks go to a folder of its own, empty at first: loading is as slow as the first time.
    Entering raises what `Pipeline.load` does, CheckpointError, and MissingDependency where a checkpoint needs
    packages that are not installed; SfumatoError, here and later, where the process dies.
    """

    def __init__(
        self,
        source: str,
        *,
        name: str | None = None,
        device: str | Sequence[str] = "CPU",
        precision: str | None = None,
        threads: int | None = None,
        pinning: bool | None = None,
        cores: str | None = None,
        memory: str = "auto",
        token_merging: float | None = None,
        merging_method: str = "match",
        reuse: Reuse | None = None,
        profiled: bool = False,
    ) -> None:
        self.source = source
        self.name = name or short_name(source)
        self.load_seconds = 0.0
        """From the start of loading, libraries among it, to compiled networks: whole after one picture."""
        running: dict[str, Any] = {"device": device, "precision": precision, "threads": threads}
        running |= {"pinning": pinning, "cores": cores, "memory": memory}
        running |= {"token_merging": token_merging, "merging_method": merging_method, "reuse": reuse}
        self._opening = {"source": source, "name": self.name, "profiled": profiled, "running": running}
        self._peak_memory = 0
        self._warned: set[str] = set()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="sfumato-"))
            self._complaints = stack.enter_context(tempfile.TemporaryFile())
            self._process = _start(Path(cache), self._complaints)
            stack.push(self._end)
            self._model = Model.model_validate(self._ask(self._opening)["model"])
            self._open = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._open.__exit__(*exception)

    @property
    def model(self) -> Model:
        """What was loaded."""
        return self._model

    def generate(
        self,
        prompt: str,
        *,
        negative: str | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
        out: Path | None = None,
    ) -> Run:
        """Make one picture, write it to `out` as PNG if given, and say what it took without the writing.

        None is the model's default. Texts are encoded anew each time. Raises InvalidRequest for what the
        model cannot do.
        """
        settings: dict[str, Any] = {"prompt": prompt, "negative": negative, "seed": seed, "steps": steps}
        settings |= {"guidance": guidance, "size": size, "out": None if out is None else str(out.absolute())}
        return Run.model_validate(self._ask(settings)["run"])

    def peak_memory_bytes(self) -> int:
        """Largest resident memory of the process up to the last picture.

        It counts the interpreter, the libraries and the pages of mapped weights that were read.
        """
        return self._peak_memory

    def profile(self) -> "Profile":
        """Where the time of a picture goes, the mean of those so far; InvalidRequest unless asked for."""
        from .profile import Profile

        return Profile.model_validate(self._ask({"profile": True})["profile"])

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        line = b""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise SfumatoError(f"{self.name}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        for warning in answer["warnings"]:
            if warning not in self._warned:
                self._warned.add(warning)
                log.warning("%s: %s", self.name, warning)
        if "error" in answer:
            log.info("%s: the process says\n%s", self.name, self._said())
            raise _error(**answer["error"])
        self.load_seconds = answer.get("load_seconds", self.load_seconds)
        self._peak_memory = answer.get("peak_memory_bytes", self._peak_memory)
        return answer

    def _last_words(self) -> str:
        """Why the process ended, as far as can be known."""
        code = self._process.wait()
        lines = self._said().strip().splitlines()
        said = f"; it said: {lines[-1].strip()}" if lines else ""
        if code == -signal.SIGKILL:
            return f"its process was killed, as when memory runs out; try memory 'low', or fewer models{said}"
        return f"its process ended (exit code {code}){said}"

    def _said(self) -> str:
        """The end of its standard error."""
        self._complaints.seek(max(0, self._complaints.seek(0, os.SEEK_END) - 4000))
        return self._complaints.read().decode(errors="replace")

    def _end(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the process: in peace, or at once where the block failed or was interrupted."""
        process = self._process
        if kind is None:
            with suppress(BrokenPipeError, subprocess.TimeoutExpired):
                assert process.stdin is not None
                process.stdin.close()
                process.wait(PATIENCE)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):
                assert pipe is not None
                pipe.close()


def short_name(source: str) -> str:
    """What a source ends with: "sd15" of "models/sd15/", "sd15 (torch nf4)" of "torch:sd15?quant=nf4".

    Raises InvalidRequest for options of a checkpoint that cannot be.
    """
    if source.startswith(TORCH):
        from ..torch_backend.source import parse_source

        checkpoint = parse_source(source.removeprefix(TORCH))
        return f"{short_name(checkpoint.place)} ({checkpoint.label})"
    name = Path(source).resolve().name if Path(source).exists() else Path(source).name
    return name or source


def _start(cache: Path, complaints: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # -P: no modules from the folder that the command happens to run in
        [sys.executable, "-P", "-m", "sfumato.compare.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=complaints,
        env=os.environ | {"SFUMATO_CACHE": str(cache), "PYTHONIOENCODING": "utf-8"},
    )


def _error(kind: str, message: str) -> SfumatoError:
    """The child's error as one of the same class, and so with the same exit code."""
    found = getattr(errors, kind, SfumatoError)
    return found(message) if issubclass(found, SfumatoError) else SfumatoError(message)
