"""`sfumato ui`: what it refuses, who may do what, and how it ends."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sfumato.serve.ui import run as running
from sfumato.serve.ui.run import Settings

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """What the command does with signals stays with it."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """The settings that `sfumato ui ARGUMENTS...` shows a page with."""

    def asked(*arguments: object) -> Settings:
        found: list[Settings] = []
        monkeypatch.setattr(running, "run", lambda settings, ready: found.append(settings))
        assert run("ui", *arguments).code == 0
        return found[0]

    return asked


def test_help_has_an_example(run: Run) -> None:
    outcome = run("ui", "--help")
    assert outcome.code == 0
    assert "sfumato ui ./sd15-int8 ./sd15-fp16 --output pictures/" in outcome.out


def test_an_unknown_model(run: Run) -> None:
    outcome = run("ui", "nix")
    assert outcome.code == 2
    assert "'nix'" in outcome.error


def test_a_port_in_use(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = run("ui", "mini", "--port", port)
    assert outcome.code == 2
    assert f"127.0.0.1:{port}: cannot be listened on" in outcome.error
    assert len(outcome.err.strip().splitlines()) == 1


def test_without_gradio(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in [name for name in sys.modules if name.startswith("sfumato.serve.ui.")]:
        if name != running.__name__:
            monkeypatch.delitem(sys.modules, name)
    outcome = run("ui", "mini")
    assert outcome.code == 2
    assert "'gradio'; install it with `pip install 'sfumato[ui]'`" in outcome.error


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        ((), True),
        (("--no-jobs",), False),
        (("--host", "0.0.0.0"), False),
        (("--host", "0.0.0.0", "--password", ""), False),
        (("--host", "0.0.0.0", "--password", "secret"), True),
        (("--host", "0.0.0.0", "--jobs"), True),
    ],
)
def test_files_of_this_machine_are_not_for_everybody(
    asked: Callable[..., Settings], arguments: tuple[str, ...], jobs: bool
) -> None:
    assert asked(*arguments).jobs is jobs


def test_options_reach_the_pipelines(asked: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_PASSWORD", "from outside")
    settings = asked("mini", "--threads", 1, "--memory", "low", "--at-once", 2, "--waiting", 3)
    assert (settings.models, settings.at_once, settings.waiting) == (("mini",), 2, 3)
    assert settings.password == "from outside"
    assert settings.pipeline["threads"] == 1
    assert settings.pipeline["memory"] == "low"


def test_the_address_as_json(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "run", lambda settings, ready: ready("http://127.0.0.1:7860/"))
    assert json.loads(run("ui", "--json").out) == {"url": "http://127.0.0.1:7860/"}


def test_merging_is_chosen_on_the_page(run: Run) -> None:
    outcome = run("ui", "--token-merging", 0.5)
    assert outcome.code == 2
    assert "No such option '--token-merging'" in outcome.error
    assert "--memory" in (help_page := run("ui", "--help").out) and "merging" not in help_page


def test_it_asks_for_its_password_and_leaves_nothing_behind(
    spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    process = spawn("ui", "mini", "--no-jobs", "--password", "secret")
    assert process.stderr is not None
    found = re.match(r"(http://127\.0\.0\.1:\d+/)  \(Ctrl-C ends it\)", process.stderr.readline())
    assert found
    assert len(list(tmp_path.glob("sfumato-*"))) == 2  # pictures and uploads
    with httpx.Client(base_url=found[1], timeout=60) as client:
        assert client.get("config").status_code == 401
        assert client.post("login", data={"username": "a", "password": "wrong"}).status_code == 400
        assert client.post("login", data={"username": "a", "password": "secret"}).status_code == 200
        assert '"A/B"' in client.get("config").text
        assert "Convert &" not in client.get("config").text
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert list(tmp_path.iterdir()) == []
