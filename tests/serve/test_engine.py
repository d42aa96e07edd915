"""Generations in threads: told of, queued, cancelled, and with models that come and go."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sfumato import Pipeline
from sfumato.artifact import find_model
from sfumato.errors import ArtifactError, Cancelled, InvalidRequest
from sfumato.serve.engine import Engine, Event, Finished, Made, Started, Stepped, Waiting, Work

APPLE = Work(model="mini", prompt="noto red apple", given={"steps": 3, "seed": 7})
LONG = Work(model="mini", prompt="noto red apple", given={"steps": 150, "count": 20, "seed": 7})


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(waiting=1)
    yield engine
    engine.close()


def names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def test_a_picture_is_that_of_the_pipeline(engine: Engine) -> None:
    events = list(engine.start(APPLE).events())
    finished = events[-1]
    assert isinstance(finished, Finished)
    expected = Pipeline.load("mini")("noto red apple", steps=3, seed=7).images[0]
    assert np.array_equal(np.asarray(finished.result.images[0]), np.asarray(expected))
    assert names(events)[0] == "Started"
    assert names(events)[-2:] == ["Made", "Finished"]
    assert (engine.step_seconds(find_model("mini")) or 0) > 0


def test_only_the_latest_step_is_told_to_one_who_was_away(engine: Engine) -> None:
    task = engine.start(APPLE)
    assert task.wait(60)
    steps = [event for event in task.events() if isinstance(event, Stepped)]
    assert [(step.done, step.total) for step in steps] == [(3, 3)]


def test_the_second_one_waits_and_the_third_is_refused(engine: Engine) -> None:
    first = engine.start(LONG)
    going = first.events()
    assert isinstance(next(going), Started)
    second = engine.start(APPLE)
    waiting = second.events()
    assert next(waiting) == Waiting(1)
    assert engine.waiting("mini") == 2
    with pytest.raises(InvalidRequest, match="1 are waiting already"):
        list(engine.start(APPLE).events())
    going.close()
    assert names(list(waiting))[-2:] == ["Made", "Finished"]
    assert engine.waiting("mini") == 0


def test_cancelled_while_it_runs(engine: Engine) -> None:
    task = engine.start(LONG)
    with pytest.raises(Cancelled):
        for event in task.events():
            if isinstance(event, Stepped):
                task.cancel()
    assert task.wait(10)


def test_cancelled_while_it_waits(engine: Engine) -> None:
    first = engine.start(LONG)
    going = first.events()
    assert isinstance(next(going), Started)
    second = engine.start(APPLE)
    with pytest.raises(Cancelled):
        for event in second.events():
            assert isinstance(event, Waiting)
            second.cancel()
    going.close()
    assert first.wait(10)


def test_leaving_the_events_cancels(engine: Engine) -> None:
    task = engine.start(LONG)
    events = task.events()
    while not isinstance(next(events), Stepped):
        pass
    events.close()
    assert task.wait(10)


def test_merged_tokens_are_another_pipeline(engine: Engine) -> None:
    plain = [event for event in engine.start(APPLE).events() if isinstance(event, Made)]
    merged_work = Work(model="mini", prompt=APPLE.prompt, given=APPLE.given, token_merging=0.5)
    merged = [event for event in engine.start(merged_work).events() if isinstance(event, Made)]
    assert not np.array_equal(np.asarray(plain[0].image), np.asarray(merged[0].image))


def test_bad_requests_are_told(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="steps 0"):
        list(engine.start(Work(model="mini", prompt="", given={"steps": 0})).events())
    with pytest.raises(InvalidRequest, match="unknown model 'nix'"):
        list(engine.start(Work(model="nix", prompt="")).events())


def test_a_folder_that_goes_and_comes_back(engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(find_model("mini"), folder)
    work = Work(model=str(folder), prompt="noto red apple", given={"steps": 1})
    list(engine.start(work).events())
    shutil.rmtree(folder)
    with pytest.raises((ArtifactError, InvalidRequest), match="own"):
        list(engine.start(work).events())
    shutil.copytree(find_model("mini"), folder)
    assert names(list(engine.start(work).events()))[-1] == "Finished"


def test_close_ends_all_work() -> None:
    engine = Engine()
    tasks = [engine.start(LONG) for _ in range(2)]
    engine.close()
    assert all(task.wait(0) for task in tasks)
    with pytest.raises(Cancelled, match="no more work"):
        engine.start(LONG)
