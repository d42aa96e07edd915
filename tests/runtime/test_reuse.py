"""Features that steps take over from steps before."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfumato import Pipeline
from sfumato.artifact import Artifact, load_artifact
from sfumato.errors import InvalidRequest
from sfumato.runtime import reuse
from sfumato.runtime.devices import Device
from sfumato.runtime.networks import Edit, Network
from sfumato.runtime.parameters import parse_parameters, settings
from sfumato.runtime.reuse import PLANS, Plan, ReusingNetwork, plan_of
from sfumato.runtime.samplers import find_sampler


def test_key_steps_become_rarer() -> None:
    keys = [step for step, key in enumerate(Plan(1, 9).key_steps(50)) if key]
    assert keys[0] == 0
    assert len(keys) == 9
    gaps = np.diff(keys)
    assert (np.diff(gaps) >= 0).all()
    assert gaps[0] < gaps[-1]


def test_of_few_steps_more_are_key_steps() -> None:
    plan = Plan(1, 12, most=0.4)
    assert [sum(plan.key_steps(steps)) for steps in (100, 50, 25, 20, 8)] == [12, 12, 10, 8, 4]
    assert [sum(Plan(1, 7, most=0.25, least=4).key_steps(steps)) for steps in (20, 12, 8)] == [5, 4, 4]


def test_between_key_steps_some_run_the_rest() -> None:
    keys = [step in (0, 2, 7) for step in range(12)]
    runs = [step for step, run in enumerate(Plan(1, 3, rest_every=3).running(keys)) if run]
    assert runs == [0, 2, 5, 7, 10]
    assert all(Plan(1, 3).running(keys))


def test_a_model_has_its_own_key_steps(artifacts: Callable[[str], Path]) -> None:
    artifact = load_artifact(artifacts("sd"))
    assert plan_of(artifact, "fast") == PLANS["unet", "fast"]
    sampling = artifact.manifest.sampling.model_copy(update={"key_steps": {"fast": (0.0, 0.5)}})
    fitted = Artifact(artifact.path, artifact.manifest.model_copy(update={"sampling": sampling}))
    assert plan_of(fitted, "fast").key_steps(8) == [True, *[False] * 3, True, *[False] * 3]
    assert plan_of(fitted, "balanced") == PLANS["unet", "balanced"]


def pixels(pipe: Pipeline, **given: Any) -> np.ndarray:
    images = pipe("a red apple", **{"seed": 3, "steps": 12} | given).images
    return np.stack([np.asarray(image, float) for image in images])


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_key_steps_alone_are_the_ordinary_way(
    name: str, artifacts: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipeline.load(artifacts(name), precision="f32")
    ordinary = pixels(pipe, steps=8)
    kind = pipe.artifact.family.component(pipe.artifact.family.denoiser).kind
    monkeypatch.setitem(PLANS, (kind, "fast"), Plan(1, 8, fitted=tuple(step / 8 for step in range(8))))
    assert np.abs(pixels(pipe, steps=8, reuse="fast") - ordinary).max() <= 1


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call of a denoiser whether it ran the rest alone, as they come."""
    found: list[bool] = []
    call = Network.__call__

    def counting(self: Network, inputs: Any, outputs: Any) -> Any:
        if "timestep" in inputs:
            found.append(reuse.FEATURES in inputs)
        return call(self, inputs, outputs)

    monkeypatch.setattr(Network, "__call__", counting)
    return found


def test_fewer_calls_and_nearly_the_same_picture(calls: list[bool]) -> None:
    pipe = Pipeline.load("mini")
    ordinary = pixels(pipe, steps=28, count=4)
    calls.clear()
    errors = {}
    for way in ("balanced", "fast"):
        made = pixels(pipe, steps=28, count=4, reuse=way)
        plan = PLANS["mmdit", way]
        keys = plan.key_steps(28)
        runs = plan.running(keys)
        assert [not rest for rest in calls] == 4 * [key for key, run in zip(keys, runs, strict=True) if run]
        errors[way] = np.mean((made - ordinary) ** 2)
        calls.clear()
    assert 0 < errors["balanced"] < errors["fast"] < 200  # of 65,025: 25 dB


@pytest.mark.parametrize(("way", "most"), [("balanced", 80), ("fast", 200)])
def test_nearly_the_same_picture_with_guidance_at_key_steps(way: str, most: float) -> None:
    pipe = Pipeline.load("mini")
    made = pixels(pipe, steps=28, count=4, reuse=way, guidance_every=2)
    error = np.mean((made - pixels(pipe, steps=28, count=4)) ** 2)
    assert 0 < error < most


class Telling:
    """Stands for a network: tells its text's number as features, and keeps those that it is given."""

    def __init__(self, artifact: Artifact, name: str, device: Device, edit: Edit | None = None) -> None:
        self.given: list[tuple[float, float]] = []

    def load(self, inputs: Any, outputs: Any) -> None:
        pass

    def shape_of(self, name: str) -> tuple[int, ...]:
        return (1,)

    def __call__(self, inputs: Any, outputs: Any) -> dict[str, Any]:
        text = inputs["encoder_hidden_states"]
        if reuse.FEATURES in inputs:
            self.given.append((float(text[0]), float(inputs[reuse.FEATURES][0])))
            return {"out_sample": text}
        return {"out_sample": text, reuse.FEATURES: text}


def test_each_text_has_its_own_features(artifacts: Callable[[str], Path]) -> None:
    made: list[Telling] = []

    def make(*given: Any) -> Any:
        made.append(Telling(*given))
        return made[-1]

    network = ReusingNetwork(load_artifact(artifacts("sd")), Device(), Plan(1, 2), make=make)
    schedule = find_sampler("ddim", "vp").schedule({}, 8, family="sd")
    network.begin(schedule, True)
    texts = [np.array([number], np.float32) for number in (1, 2)]
    for timestep in schedule.timesteps:
        for text in texts:
            network({"timestep": np.array([timestep]), "encoder_hidden_states": text}, {})
    assert made[1].given == [(1.0, 1.0), (2.0, 2.0)] * 6


@pytest.mark.parametrize(("sampler", "eta", "runs"), [("euler-ancestral", None, 16), ("ddim", 0.0, 7)])
def test_where_noise_is_added_every_step_runs(
    sampler: str,
    eta: float | None,
    runs: int,
    calls: list[bool],
    artifacts: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A network must see fresh noise to take it away: no line through earlier outputs knows of it."""
    monkeypatch.setitem(PLANS, ("unet", "fast"), Plan(1, 4, rest_every=3))
    pipe = Pipeline.load(artifacts("sd"))
    pixels(pipe, steps=16, reuse="fast", guidance=1.0, sampler=sampler, eta=eta)
    assert len(calls) == runs


def test_each_picture_has_its_own_features() -> None:
    pipe = Pipeline.load("mini")
    given: dict[str, Any] = {"reuse": "fast", "guidance_interval": (0.3, 0.9)}
    together = pixels(pipe, count=2, **given)
    second = pixels(pipe, seed=4, **given)
    np.testing.assert_array_equal(together[1], second[0])


def test_few_steps_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    pipe = Pipeline.load("mini")
    with caplog.at_level(logging.WARNING, "sfumato"):
        result = pipe("a red apple", steps=4, seed=3, reuse="fast")
    assert "reuse fast: off, as 4 steps are too few; it takes 8" in caplog.text
    assert result.request.reuse == "off"
    assert "Reuse" not in result.parameters()


def test_a_part_with_few_steps_runs_them_in_full(
    artifacts: Callable[[str], Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a picture is begun from little is left to do, and a refiner goes the last part alone."""
    pipe = Pipeline.load(artifacts("sdxl"), precision="f32")
    drawn = {"steps": 20, "seed": 3, "image": np.zeros((64, 64, 3), np.uint8), "strength": 0.2}
    with caplog.at_level(logging.WARNING, "sfumato"):
        result = pipe("a red apple", reuse="fast", **drawn)
    assert "reuse fast: off, as 4 steps are too few; it takes 8" in caplog.text
    assert "Reuse" not in result.parameters()
    np.testing.assert_array_equal(result.images[0], pipe("a red apple", **drawn).images[0])

    refiner = Pipeline.load(artifacts("sdxl"), precision="f32")
    monkeypatch.setattr(refiner.reusing, "by", None)
    refined = {"steps": 20, "seed": 3, "refiner": refiner}
    result = pipe("a red apple", reuse="fast", **refined)
    assert "Reuse: fast" in result.parameters()
    assert np.any(np.asarray(result.images[0]) != np.asarray(pipe("a red apple", **refined).images[0]))


def test_the_picture_says_it() -> None:
    result = Pipeline.load("mini")("a red apple", steps=8, seed=3, reuse="balanced")
    assert settings(parse_parameters(result.parameters()))["reuse"] == "balanced"


def test_a_way_that_is_none() -> None:
    with pytest.raises(InvalidRequest, match="reuse 'quick': There is off, balanced, fast"):
        Pipeline.load("mini")("a red apple", reuse="quick")
    with pytest.raises(InvalidRequest, match="did you mean 'fast'"):
        Pipeline.load("mini")("a red apple", reuse="fats")


def test_a_model_that_is_too_small(artifacts: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLANS, ("mmdit", "fast"), Plan(99, 4))
    with pytest.raises(InvalidRequest, match="reuse: depth 99: the denoiser has depths 1 to"):
        Pipeline.load(artifacts("sd3"))("a red apple", steps=8, reuse="fast")
