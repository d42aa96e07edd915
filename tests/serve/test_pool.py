"""Which pipelines stay loaded."""

import shutil
from pathlib import Path

import pytest

from sfumato.artifact import find_model, load_artifact
from sfumato.runtime.pipeline import Pipeline
from sfumato.serve import pool as pools
from sfumato.serve.pool import MOST_IDLE, Pool, Wanted


@pytest.fixture
def mini() -> Wanted:
    return Wanted(load_artifact(find_model("mini")))


def test_the_same_pipeline_comes_again(mini: Wanted) -> None:
    pool = Pool({})
    with pool.borrowed([mini]) as first:
        pass
    with pool.borrowed([mini]) as second:
        pass
    assert first[0] is second[0]


def test_two_who_want_it_at_once_get_two(mini: Wanted) -> None:
    pool = Pool({})
    with pool.borrowed([mini, mini]) as pipelines:
        assert pipelines[0] is not pipelines[1]


def test_a_model_made_anew_is_loaded_anew(tmp_path: Path) -> None:
    pool = Pool({})
    shutil.copytree(find_model("mini"), tmp_path / "own")
    with pool.borrowed([Wanted(load_artifact(tmp_path / "own"))]) as first:
        pass
    manifest = tmp_path / "own" / "sfumato.json"
    manifest.write_text(manifest.read_text().replace('"steps": 20', '"steps": 21'))
    with pool.borrowed([Wanted(load_artifact(tmp_path / "own"))]) as second:
        assert second[0] is not first[0]
        assert second[0].artifact.manifest.sampling.steps == 21


def test_each_is_loaded_as_one_of_several(mini: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that "auto" leaves memory for the others, and a device may be given for what only one has."""
    besides = []
    load = Pipeline.load
    monkeypatch.setattr(
        Pipeline, "load", lambda *given, beside, **options: besides.append(beside) or load(*given, **options)
    )
    with Pool({}).borrowed([mini, Wanted(mini.artifact, 0.5)]):
        assert besides == [[mini.artifact.path], [mini.artifact.path]]


def test_idle_ones_are_let_go(mini: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[Pipeline] = []
    monkeypatch.setattr(Pipeline, "release", lambda pipeline: released.append(pipeline))
    pool = Pool({})
    with pool.borrowed([mini] * (MOST_IDLE + 2)) as pipelines:
        pass
    assert released == pipelines[:2]
    pool.close()
    assert released == pipelines


def test_memory_that_another_model_needs_is_made_free(mini: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[Pipeline] = []
    monkeypatch.setattr(Pipeline, "release", lambda pipeline: released.append(pipeline))
    pool = Pool({"memory": "high"})
    with pool.borrowed([mini]) as kept:
        pass
    monkeypatch.setattr(pools, "available", lambda: 1000)
    with pool.borrowed([Wanted(mini.artifact, 0.5)]):
        assert released == kept
