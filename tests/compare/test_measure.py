"""Timing in turns, and what comes of it."""

import importlib.metadata
from typing import Any

import pytest

from sfumato.compare.environment import environment
from sfumato.compare.measure import Task, alternate, summarise, unique_names
from sfumato.compare.records import Run
from sfumato.errors import InvalidRequest


class Fake:
    """A worker whose pictures take 1, 2, 3, ... seconds."""

    def __init__(self, name: str, journal: list[str]) -> None:
        self.name = name
        self.load_seconds = 9.0
        self._journal = journal
        self._runs = 0

    def generate(self, prompt: str, **settings: Any) -> Run:
        self._journal.append(self.name)
        self._runs += 1
        seconds = float(self._runs)
        return Run(
            encode=seconds,
            steps=(seconds, 3 * seconds),
            denoise=4 * seconds,
            decode=seconds,
            total=6 * seconds,
            components={"unet": seconds},
        )

    def peak_memory_bytes(self) -> int:
        return 123


def test_workers_take_turns_and_warm_up_first():
    journal: list[str] = []
    told: list[tuple[int, int]] = []
    workers = [Fake(name, journal) for name in "abc"]
    taken = alternate(workers, [Task("x")], runs=2, warmup=1, on_progress=lambda *given: told.append(given))
    assert "".join(journal) == "abc" + "cba" + "abc"
    assert {name: [run.encode for run in runs] for name, runs in taken.items()} == {
        name: [2.0, 3.0] for name in "abc"
    }
    assert told == [(done, 9) for done in range(1, 10)]


def test_every_task_is_done_in_every_round():
    journal: list[str] = []
    taken = alternate([Fake("a", journal)], [Task("x"), Task("y")], runs=3, warmup=0)
    assert len(taken["a"]) == 6


@pytest.mark.parametrize("runs", [0, -1, 10_001])
def test_no_runs_are_refused(runs):
    with pytest.raises(InvalidRequest, match=f"runs {runs}: must be a whole number from 1"):
        alternate([Fake("a", [])], [Task("x")], runs=runs)


def test_two_models_of_one_name_are_refused():
    with pytest.raises(InvalidRequest, match="a, a: give each a name of its own"):
        alternate([Fake("a", []), Fake("a", [])], [Task("x")], runs=1)


def test_summary_has_medians_quartiles_and_mean_steps():
    worker = Fake("a", [])
    runs = [worker.generate("x") for _ in range(5)]
    speed = summarise(worker, runs)
    total = speed.seconds["total"]
    assert (total.low, total.median, total.high) == (12.0, 18.0, 24.0)
    assert speed.seconds["step"].median == 6.0
    assert speed.seconds["load"].runs == (9.0,)
    assert speed.components["unet"].median == 3.0
    assert speed.peak_memory_bytes == 123


def test_one_run_is_its_own_quartiles():
    worker = Fake("a", [])
    timing = summarise(worker, [worker.generate("x")]).seconds["total"]
    assert timing.low == timing.median == timing.high == 6.0


def test_names_are_numbered_where_they_repeat():
    assert unique_names(["mini", "sd", "mini", "mini"]) == ["mini", "sd", "mini-2", "mini-3"]


def test_environment_says_where():
    found = environment()
    assert found.processor and found.cores >= 1 and found.memory_bytes > 10**8
    assert found.packages["openvino"] == importlib.metadata.version("openvino")
    assert "sfumato" in found.packages
