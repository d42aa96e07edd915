"""benchmarks/peers.py: what comes of times, which rows can be measured, and one small table made whole."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def peers(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import peers
    import peers_rows
    import peers_times

    return SimpleNamespace(main=peers, rows=peers_rows, times=peers_times)


def outing(peers: Any, first: float, *pictures: tuple[float, list[float]], memory: int = 0) -> Any:
    made = tuple(peers.times.Picture(seconds, tuple(marks)) for seconds, marks in pictures)
    return peers.times.Outing(first, made, memory)


def test_a_picture_of_more_steps_takes_what_is_no_step_and_the_median_step(peers):
    # encoding and the first step 3 s, then steps of 1, 1 and 4 s, then 2 s to decode
    warm = (11.0, [3.0, 4.0, 5.0, 9.0])
    found = peers.times.figures([outing(peers, 30.0, (20.0, []), warm, memory=5)], (20, 50), whole=False)
    assert found.step == 1.0
    assert found.warm == {20: 3 + 19 + 2, 50: 3 + 49 + 2}
    assert found.start == 30 - 11
    assert found.cold == {20: 24 + 19, 50: 54 + 19}
    assert found.peak_memory_bytes == 5


def test_rows_whose_steps_differ_are_never_scaled(peers):
    pictures = [(9.0, [1.0]), (6.0, [1.0]), (12.0, [2.0, 4.0, 10.0]), (30.0, [2.0, 6.0, 24.0])]
    found = peers.times.figures([outing(peers, 20.0, *pictures)], (20, 50), whole=True)
    assert found.warm == {20: 12.0, 50: 30.0}
    assert found.step == 11.0  # the mean of 4 and 18
    assert found.cold[50] == 20 - 6 + 30


def test_medians_are_of_the_rounds(peers):
    rounds = [outing(peers, 10.0 + n, (1.0, []), (2.0 + n, [0.5, 1.0 + n]), memory=n) for n in (0, 1, 5)]
    found = peers.times.figures(rounds, (2,), whole=False)
    assert (found.step, found.start, found.peak_memory_bytes) == (1.5, 8.0, 5)


def test_what_one_process_is_asked_for(peers):
    assert peers.times.asked(3, [20, 50], whole=False) == (3, 3)
    assert peers.times.asked(3, [20, 50], whole=True) == (8, 8, 20, 50)


def test_a_missing_package_is_a_row_that_says_how_to_install_it(peers, monkeypatch):
    needs = peers.rows.Needs(("no_such_module",), "pip install no-such-module")
    monkeypatch.setitem(peers.rows.NEEDS, "genai", needs)
    row = peers.rows._genai("GenAI", "fp16")
    reason = row.reason_against("StableDiffusionPipeline")
    assert reason == "not installed: pip install no-such-module"
    table = peers.main.markdown([peers.main.Result(row, None, reason)], [50])
    assert "| GenAI | not installed: pip install no-such-module |" in table


def test_a_peer_that_does_not_run_the_family_says_so(peers):
    onnx = next(row for row in peers.rows.ROWS if row.engine == "onnx")
    assert "StableDiffusion3Pipeline" in onnx.reason_against("StableDiffusion3Pipeline")


def test_rows_of_the_command_line(peers):
    row = peers.rows.ours("tuned=models/sd15=8?reuse=fast&token_merging=0.5")
    assert (row.name, row.source, row.whole) == ("tuned", "models/sd15=8", True)
    assert row.options == {"reuse": "fast", "token_merging": 0.5}
    for text in ("models/sd15", "=models", "name=", "name=models?reuse"):
        with pytest.raises(ValueError, match="give"):
            peers.rows.ours(text)


def test_only_what_rows_need_is_made(peers, tmp_path):
    work = peers.rows.Work(tmp_path / "sd15", tmp_path / "work", (512, 512), None)
    assert work.missing({"checkpoint", "elsewhere"}) == []
    assert work.missing({"int8"}) == ["fp16", "int8"]
    (tmp_path / "work" / "int8").mkdir(parents=True)
    assert work.missing({"int8"}) == []
    assert work.missing({"int8", "onnx", "fp16"}) == ["fp16", "onnx"]


def test_the_table_compares_with_the_baseline(peers):
    def result(row: Any, seconds: float) -> Any:
        return peers.main.Result(
            row, peers.times.Figures(1.0, 2.0, {50: seconds}, {50: seconds + 2}, 3 * 10**9)
        )

    rows = {row.name: row for row in peers.rows.ROWS}
    baseline, fast = rows[peers.rows.BASELINE], rows["Sfumato fast"]
    _, _, first, second = peers.main.markdown([result(baseline, 90.0), result(fast, 4.5)], [50]).split("\n")
    assert first.endswith("| ~90.0 s | ~92.0 s | 1.00 s | 1.00 | 3.0 GB |")
    assert second.endswith("| 4.5 s | 6.5 s | 1.00 s | 20.00 | 3.0 GB |")  # run in full: no "~"


def test_a_process_that_fails_says_why(peers, tmp_path):
    job = peers.main.Job("sfumato", str(tmp_path / "none"), "", 7.5, 0, 64, 64, 1, (2,))
    with pytest.raises(peers.main.PeerFailed, match="none"):
        peers.main.go(job, 60)
    with pytest.raises(peers.main.PeerFailed, match="stopped after 0 s"):
        peers.main.go(job, 0.01)


def test_a_whole_table(tiny_sd_table):
    document = json.loads(tiny_sd_table)
    plain, tuned = document["rows"]
    assert plain["measured"]["warm"].keys() == tuned["measured"]["warm"].keys() == {"8", "9"}
    assert 0 < plain["measured"]["step"] < plain["measured"]["warm"]["8"]
    assert plain["measured"]["cold"]["9"] > plain["measured"]["warm"]["9"]
    assert plain["measured"]["peak_memory_bytes"] > 10**7
    assert tuned["whole"] and not plain["whole"]


@pytest.fixture
def tiny_sd_table(checkpoints, artifacts, tmp_path) -> str:
    """The JSON of two rows of Sfumato on the tests' own model, the INT8 one standing in as it is."""
    (tmp_path / "int8").symlink_to(artifacts("sd"))
    command = [sys.executable, str(BENCHMARKS / "peers.py"), str(checkpoints("sd")), str(tmp_path)]
    command += ["--size", "64x64", "--of", "8,9", "--steps", "3", "--threads", "1", "--json"]
    command += ["--only", "Sfumato INT8 merging", "--only", "tuned"]
    command += ["--ours", f"tuned={artifacts('sd')}?reuse=fast"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "round 1: tuned" in done.stderr
    return done.stdout
