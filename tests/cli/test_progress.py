"""Progress on a terminal and elsewhere, and what is said of an interruption."""

import os
import pty
import re
import sys
import termios
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from sfumato.cli.common import Progress, interruptible


def drawn(work: Callable[[Progress], None], *, quiet: bool = False) -> str:
    """What `work` puts on a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with os.fdopen(theirs, "w") as terminal, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with Progress(quiet) as progress:
            work(progress)
        print("end", file=terminal, flush=True)
        shown = ""
        while not shown.endswith("end\r\n"):  # the kernel hands a terminal's output over in pieces
            shown += os.read(ours, 100_000).decode()
    os.close(ours)
    return shown


def stages(progress: Progress) -> None:
    for done, text in enumerate(["writing tokenizer", "converting unet", "hashing"]):
        progress.stage(text, done, 3)


def steps(progress: Progress) -> None:
    for done in range(1, 1001):
        progress.step(done, 1000)


def test_one_bar_for_all_stages():
    shown = drawn(stages)
    assert re.search(r"writing tokenizer.*0/3.*converting unet.*1/3.*hashing.*2/3", shown, re.S)
    assert shown.count("\n") == 1, "only that of the end"


def test_one_bar_for_all_steps(monkeypatch):
    made = []
    from tqdm import tqdm

    monkeypatch.setattr("tqdm.tqdm", lambda **options: made.append(options) or tqdm(**options))
    assert "step" in drawn(steps)
    assert len(made) == 1


def test_plain_lines_elsewhere(capsys):
    with Progress(quiet=False) as progress:
        stages(progress)
        steps(progress)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["writing tokenizer (1/3)", "converting unet (2/3)", "hashing (3/3)"]
    assert lines[-1] == "step 1000/1000"
    assert len(lines) < 10


def test_plain_lines_become_rarer(capsys, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    told = []
    with Progress(quiet=False) as progress:
        for done in range(1, 7200):  # two hours, a step a second
            now += 1
            progress.step(done, 10_000)
            told += [done] * bool(capsys.readouterr().err)
    assert told[:10] == list(range(1, 11))
    assert max(b - a for a, b in pairwise(told)) == 11
    assert len(told) < 750


def test_quiet():
    assert drawn(lambda progress: (stages(progress), steps(progress)), quiet=True) == "end\r\n"


def test_an_interruption_says_what_is_there():
    kept: list[str] = []
    with pytest.raises(KeyboardInterrupt, match="kept a"), interruptible(lambda: f"kept {kept[0]}"):
        kept.append("a")
        raise KeyboardInterrupt
