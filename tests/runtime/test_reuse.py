"""Features that steps take over from steps before."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfumato import Pipeline
from sfumato.errors import InvalidRequest
from sfumato.runtime import reuse
from sfumato.runtime.networks import Network
from sfumato.runtime.parameters import parse_parameters, settings
from sfumato.runtime.reuse import PLANS, Plan, predicted


def test_key_steps_begin_all_and_become_few() -> None:
    assert Plan(depth=1, warm=0.2, every=3).keys(10) == [*[True] * 2, *[False, False, True] * 2, False, False]
    assert Plan(depth=1, warm=0.0, every=5).keys(3) == [True, False, False]
    assert all(Plan(depth=1, warm=0.0, every=1).keys(7))


def test_prediction_goes_on_along_the_line() -> None:
    line = [np.float32([0.0, 1.0]) + np.float32(step) for step in range(8)]
    seen = [(2, line[2]), (5, line[5])]
    np.testing.assert_allclose(predicted(seen, 7, order=1), line[7])
    np.testing.assert_array_equal(predicted(seen, 7, order=0), line[5])
    np.testing.assert_array_equal(predicted(seen[1:], 7, order=1), line[5])


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
    monkeypatch.setitem(PLANS, (kind, "fast"), Plan(depth=1, warm=0.0, every=1))
    assert np.abs(pixels(pipe, steps=8, reuse="fast") - ordinary).max() <= 1


def test_fewer_calls_and_nearly_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    call = Network.__call__

    def counting(self: Network, inputs: Any, outputs: Any) -> Any:
        if "timestep" in inputs:
            calls.append(reuse.FEATURES in inputs)
        return call(self, inputs, outputs)

    monkeypatch.setattr(Network, "__call__", counting)
    pipe = Pipeline.load("mini")
    ordinary = pixels(pipe, steps=28)
    calls.clear()
    errors = {}
    for way in ("balanced", "fast"):
        made = pixels(pipe, steps=28, reuse=way)
        assert [not rest for rest in calls] == PLANS["mmdit", way].keys(28)
        errors[way] = np.mean((made - ordinary) ** 2)
        calls.clear()
    assert 0 < errors["balanced"] < errors["fast"] < 200  # of 65,025: 25 dB


def test_each_picture_and_each_text_has_its_own_features() -> None:
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


def test_the_picture_says_it() -> None:
    result = Pipeline.load("mini")("a red apple", steps=8, seed=3, reuse="balanced")
    assert settings(parse_parameters(result.parameters()))["reuse"] == "balanced"


def test_a_way_that_is_none() -> None:
    with pytest.raises(InvalidRequest, match="reuse 'quick': There is off, balanced, fast"):
        Pipeline.load("mini")("a red apple", reuse="quick")
    with pytest.raises(InvalidRequest, match="did you mean 'fast'"):
        Pipeline.load("mini")("a red apple", reuse="fats")


def test_a_model_that_is_too_small(artifacts: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLANS, ("mmdit", "fast"), Plan(depth=99, warm=0.0, every=2))
    with pytest.raises(InvalidRequest, match="reuse: depth 99: the denoiser has depths 1 to"):
        Pipeline.load(artifacts("sd3"))("a red apple", steps=8, reuse="fast")
