"""The command line as a whole: start-up time, help, mistakes and how they are reported."""

import importlib
import os
import subprocess
import sys
import time

import click
import pytest

from sfumato import cli
from sfumato.errors import InvalidRequest


def _seconds(*command: str) -> float:
    """The quickest of three runs: what the command costs when the machine is not busy elsewhere."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return min(times)


def test_help_is_quick():
    assert _seconds("-m", "sfumato", "--help") < 0.5


def test_import_is_quick():
    assert _seconds("-c", "import sfumato") < 0.3


def test_help_imports_no_command():
    code = "import sys; from sfumato.cli import main; main(['--help']); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "numpy" not in modules.split()
    assert "openvino" not in modules.split()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_table_names_what_exists(name):
    home, line = cli.COMMANDS[name]
    module, attribute = home.split(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert line.endswith(".")


@pytest.mark.parametrize(
    "command",
    [
        "generate",
        "batch",
        "convert",
        "models",
        "models inspect",
        "models verify",
        "train embedded data",
        "train embedded vae",
        "train embedded diffusion",
    ],
)
def test_help_has_an_example(run, command):
    outcome = run(*command.split(), "--help")
    assert outcome.code == 0
    assert f"Example:\n    sfumato {command.split()[0]}" in outcome.out
    assert "--json" in outcome.out


def test_unknown_command_names_the_nearest(run):
    outcome = run("generat")
    assert outcome.code == 2
    assert outcome.error == "error: no command 'generat'; did you mean 'generate'? (see 'sfumato --help')"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("models verfy", "'verfy'; did you mean 'verify'?"),
        ("models ./folder", "'./folder'; there is: inspect, verify"),
        ("train embedded vea", "'vea'; did you mean 'vae'?"),
    ],
)
def test_unknown_subcommands_too(run, words, says):
    outcome = run(*words.split())
    assert outcome.code == 2
    assert says in outcome.error


def test_unknown_option_names_the_nearest(run):
    outcome = run("generate", "x", "--stepz", "3")
    assert outcome.code == 2
    assert "--steps" in outcome.error


def test_nothing_asked_shows_help(run):
    outcome = run()
    assert outcome.code == 2
    assert "Commands:" in outcome.err


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback(run, monkeypatch, place):
    def fail(*_):
        raise InvalidRequest("bad thing")

    monkeypatch.setattr("sfumato.cli.models.find_model", fail)
    words = ["models", "inspect", "x"]
    outcome = run("--debug", *words) if place == "before" else run(*words, "--debug")
    assert outcome.code == 2
    assert "Traceback" in outcome.err
    assert outcome.err.strip().splitlines()[-1] == "error: bad thing"


def test_unexpected_error_is_one_line(run, monkeypatch):
    def fail(*_):
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr("sfumato.cli.models.find_model", fail)
    outcome = run("models", "inspect", "x")
    assert outcome.code == 1
    assert outcome.err == "error: unexpected RuntimeError: first second; run with --debug for the traceback\n"


def test_interrupt_is_one_line(run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sfumato.cli.models.find_model", interrupt)
    outcome = run("models", "inspect", "x")
    assert outcome.code == 1
    assert outcome.err == "interrupted\n"


def test_reader_that_left_is_no_error(sketch):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "sfumato", "models", "inspect", str(sketch)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 1
