"""`sfumato batch`: what it makes, says and refuses, and how it goes on after it was stopped."""

import json
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sfumato.cli.common import Progress
from sfumato.runtime.png import read_parameters

LINES = [{"prompt": f"noto red apple {i}", "steps": 2, "size": "64x64"} for i in range(12)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(*lines: object) -> str:
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    Path("a.jsonl").write_text(text)
    return "a.jsonl"


def pictures(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def wait_for_pictures(process: subprocess.Popen[str], folder: str, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(Path(folder).glob("*.png"))) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_every_line_is_made_once(run):
    file = write({"prompt": "red apple", "steps": 2, "seed": 7, "name": "apple"}, "", *LINES[:1])
    outcome = run("batch", file, "-o", "out")
    assert outcome.code == 0
    assert outcome.out.splitlines()[0] == "out/apple.png"
    assert re.fullmatch(r"out/000003-noto-red-apple-0-\w{8}\.png", outcome.out.splitlines()[1])
    assert "2 lines done, new pictures: 2" in outcome.err
    assert read_parameters("out/apple.png").prompt == "red apple"
    run("generate", "red apple", "--steps", 2, "--seed", 7, "-o", "same.png")
    assert Image.open("out/apple.png").tobytes() == Image.open("same.png").tobytes()
    before = pictures("out")
    again = run("batch", file, "-o", "out/")
    assert (again.code, again.out, pictures("out")) == (0, "", before)
    assert "0 lines done, 2 lines done before, new pictures: 0" in again.err


def test_bad_lines_are_reported_and_the_others_made(run):
    wrong = ["red apple", {"prompt": "a", "stepz": 3}, {"steps": 3}, {"prompt": "a", "size": "63x64"}]
    outcome = run("batch", write(LINES[0], *wrong, LINES[1]), "-o", "out", "--json")
    assert outcome.code == 1
    assert outcome.error.startswith("error: 4 lines failed")
    for number, says in ((2, "no JSON"), (3, "did you mean 'steps'"), (4, 'no "prompt"'), (5, "63x64")):
        assert re.search(rf"^line {number}: .*{says}", outcome.err, re.M), outcome.err
    report = json.loads(outcome.out)
    assert set(report) == {"folder", "model", "pictures", "lines", "failures", "seconds"}
    assert report["lines"] == {"done": 2, "done_before": 0, "failed": 4}
    assert [failure["line"] for failure in report["failures"]] == [2, 3, 4, 5]
    assert len(pictures("out")) == report["pictures"] == 2


def test_a_home_folder_that_nobody_has_ends_one_line(run):
    outcome = run("batch", write(LINES[0] | {"image": "~no-such-user/x.png"}, LINES[0]), "-o", "out")
    assert (outcome.code, len(pictures("out"))) == (1, 1)
    assert re.search(r"^line 1: image '~no-such-user/x.png': no such file", outcome.err, re.M), outcome.err


@pytest.mark.parametrize("file", ["~no-such-user/a.jsonl", "absent.jsonl", ".", "a.png"])
def test_unusable_files(run, file):
    Image.new("RGB", (8, 8)).save("a.png")
    outcome = run("batch", file, "-o", "out")
    assert outcome.code == 2
    assert file in outcome.error
    assert not Path("out").exists()


def test_unwritable_folder(run):
    Path("taken").write_text("mine")
    outcome = run("batch", write(*LINES), "-o", "taken")
    assert outcome.code == 2
    assert "taken" in outcome.error


def test_empty_file(run):
    assert run("batch", write(), "-o", "out").code == 0


def test_progress_says_how_long_it_takes(run, caplog):
    err = run("batch", write(*(line | {"steps": 8} for line in LINES[:2])), "-o", "out").err
    assert re.search(r"^step \d/8, lines \d/2", err, re.M)
    with caplog.at_level(logging.WARNING, "sfumato"):  # a --debug of this process lasts
        assert run("batch", write(LINES[0]), "-o", "more", "-q").err == ""


def test_time_left(monkeypatch, capsys):
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = Progress(quiet=False)
    for done in (10, 11, 14, 20):
        progress.step(done, 20, "line")
        now += 1000
    progress.step(3, 5)
    now += 10
    progress.step(4, 5)
    assert capsys.readouterr().err.splitlines() == [
        "line 10/20",
        "line 11/20, 2 h 30 min left",
        "line 14/20, 50 min left",
        "line 20/20",
        "step 3/5",
        "step 4/5, 10 s left",
    ]


def test_killed_and_resumed_nothing_is_lost_or_repeated(run, spawn):
    file = write(*LINES, LINES[0] | {"count": 3})
    process = spawn("batch", file, "-o", "out")
    wait_for_pictures(process, "out", 4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in Path("out").glob("*.png")}
    assert 4 <= len(before) < 15
    outcome = run("batch", file, "-o", "out")
    assert outcome.code == 0
    assert len(outcome.out.splitlines()) == 15 - len(before)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in before} == before
    run("batch", file, "-o", "whole")
    assert pictures("out") == pictures("whole")
    assert len(pictures("whole")) == 15


def test_interrupt_says_what_is_done_and_how_to_go_on(spawn):
    process = spawn("batch", write(*LINES * 20), "-o", "out")
    wait_for_pictures(process, "out", 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    last = err.strip().splitlines()[-1]
    found = re.fullmatch(r"interrupted; (\d+) lines? done, pictures in out; the same command .*", last)
    unsaid = len(pictures("out")) - int(found[1])
    assert unsaid in (0, 1), "one may have been written just before it was counted"
    for name in pictures("out"):
        Image.open(f"out/{name}").load()


def test_the_first_picture_comes_before_the_last_line(spawn):
    os.mkfifo("pipe")
    process = spawn("batch", "pipe", "-o", "out")
    with Path("pipe").open("w") as pipe:
        print(json.dumps(LINES[0]), file=pipe, flush=True)
        wait_for_pictures(process, "out", 1)
        print(json.dumps(LINES[1]), file=pipe)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, len(out.splitlines())) == (0, 2)


def test_full_disk_ends_it(on_small_disk: Callable, here: Path):
    lines = Path(write(*LINES)).resolve()
    kept = here.parent / f"{here.name}.jsonl"
    lines.replace(kept)
    outcome = on_small_disk("64k", "batch", kept, "-o", "out", "-q")
    assert outcome.code == 1
    assert "no space left" in outcome.error
    assert outcome.err.count("\n") == 1
