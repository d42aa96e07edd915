"""Running the command line as a person does, and a small model folder to run it on."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sfumato.artifact import seal, write_artifact
from sfumato.cli import main


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: exit code and the two streams."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that a failed command must end with."""
        lines = self.err.strip().splitlines()
        assert lines and lines[-1].startswith("error: "), self.err
        assert "Traceback" not in self.err
        return lines[-1]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run `sfumato ARGUMENTS...` in this process."""

    def run(*arguments: object) -> Outcome:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `sfumato ARGUMENTS...` as a process of its own, with Ctrl-C working; ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def spawn(*arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "sfumato", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A test run started in the background ignores SIGINT, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield spawn
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def on_small_disk(tmp_path: Path) -> Callable[..., Outcome]:
    """Run `sfumato ARGUMENTS...` in a disk of its own size; files that stay there end its output."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("needs the right to mount a small tmpfs")

    def run(size: str, *arguments: object) -> Outcome:
        script = (
            'mount -t tmpfs -o size="$1" tmpfs "$2" && cd "$2" && shift 2; "$@"; code=$?; ls -A; exit $code'
        )
        inside = ["unshare", "-m", "sh", "-c", script, "sh", size, str(tmp_path)]
        command = [*inside, sys.executable, "-m", "sfumato", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session", autouse=True)
def cache_of_compiled_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Leave the person's own cache alone, in this process and in those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def checkpoint(checkpoints: Callable[[str], Path]) -> Path:
    """A tiny Stable Diffusion 1.x checkpoint with random weights, in the diffusers layout."""
    return checkpoints("sd")


@pytest.fixture(scope="session")
def artifact(artifacts: Callable[[str], Path]) -> Path:
    """The same model, converted."""
    return artifacts("sd")


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    """A copy of `artifact` to damage."""
    return Path(shutil.copytree(artifact, tmp_path / "copy"))


@pytest.fixture
def sketch(tmp_path: Path) -> Path:
    """A well-formed model folder whose networks are a few bytes: enough for whatever runs no network."""
    folder = tmp_path / "sketch"
    parts = {
        "text_encoder": {"kind": "clip", "tokenizer": "tokenizer", "max_tokens": 77, "hidden_states": 3},
        "unet": {"kind": "unet"},
        "vae_encoder": {"kind": "vae_encoder"},
        "vae_decoder": {"kind": "vae_decoder"},
    }
    with write_artifact(folder) as partial:
        for name in parts:
            (partial / name).mkdir()
            (partial / name / "openvino_model.xml").write_text(f"<net name='{name}'/>")
            (partial / name / "openvino_model.bin").write_bytes(name.encode() * 100)
        (partial / "tokenizer").mkdir()
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (partial / "tokenizer" / file).write_text("{}")
        seal(
            partial,
            name="sketch",
            family="sd",
            precision="fp16",
            components=parts,
            latents={
                "channels": 4,
                "factor": 8,
                "scale": 0.18215,
                "size_multiple": 8,
                "default_size": (64, 64),
            },
            sampling={
                "sampler": "pndm",
                "prediction": "epsilon",
                "steps": 4,
                "guidance": 7.5,
                "scheduler": {},
            },
        )
    return folder
