"""Key steps that fit how a model's features change."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from sfumato.artifact import load_artifact
from sfumato.optimize.key_steps import best_keys, fitted, inner_products, prediction_error, step_lengths
from sfumato.runtime.devices import Device
from sfumato.runtime.history import History
from sfumato.runtime.reuse import PLANS, Plan
from sfumato.runtime.samplers import SAMPLERS

STEPS = 9


def features(seed: int = 0) -> np.ndarray:
    """Of STEPS steps, which change faster at the end."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.standard_normal((STEPS, 40)) * np.linspace(0.2, 2, STEPS)[:, None], axis=0)


def products(of: np.ndarray) -> np.ndarray:
    return np.asarray(of @ of.T / of.shape[1])


def whole_error(of: np.ndarray, lengths: np.ndarray, keys: tuple[int, ...]) -> float:
    """What reuse with these keys is off, by reuse's own predictions."""
    history, error = History(), 0.0
    for step in range(STEPS):
        if step in keys:
            history.add(step, of[step])
        else:
            error += lengths[step] * np.mean((history.at(step) - of[step]) ** 2)
    return error


def test_an_error_is_that_of_the_prediction() -> None:
    of = features()
    history = History()
    for step in (1, 4):
        history.add(step, of[step])
    expected = np.mean((history.at(7) - of[7]) ** 2)
    assert prediction_error(products(of), (1, 4), 7) == pytest.approx(expected, rel=1e-5)
    assert prediction_error(products(of), (4,), 7) == pytest.approx(np.mean((of[4] - of[7]) ** 2))


@pytest.mark.parametrize("count", [1, 2, 4, 9, 12])
def test_no_other_keys_are_better(count: int) -> None:
    of, lengths = features(count), np.linspace(2, 1, STEPS)
    found = best_keys(products(of), lengths, count)
    assert len(found) == min(count, STEPS)
    others = [(0, *rest) for rest in combinations(range(1, STEPS), len(found) - 1)]
    least = min(whole_error(of, lengths, keys) for keys in others)
    assert whole_error(of, lengths, found) == pytest.approx(least, rel=1e-4, abs=1e-9)


def test_features_on_a_line_need_two_keys() -> None:
    of = np.arange(STEPS)[:, None] * np.ones((1, 4)) + 1
    keys = best_keys(products(of), np.ones(STEPS), 2)
    assert whole_error(of, np.ones(STEPS), keys) == pytest.approx(1 if keys[1] > 1 else 0, abs=1e-6)
    assert keys == (0, 1)


def test_steps_are_as_long_as_what_they_do_to_the_latents() -> None:
    flow = SAMPLERS["flow-euler"].schedule({"shift": 1.0}, 10)
    np.testing.assert_allclose(step_lengths(flow).sum(), 1.0, rtol=1e-5)
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    lengths = step_lengths(SAMPLERS["ddim"].schedule(config, 10))
    assert lengths.shape == (10,)
    assert 0 < lengths.max() < 1


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_a_model_is_fitted_by_its_own_pictures(
    name: str, artifacts: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = load_artifact(artifacts(name))
    steps, done = artifact.manifest.sampling.steps, []
    device = Device("CPU", "f32", 1, cached=False)
    of = inner_products(artifact, 1, ["an apple", "a house"], device, lambda *told: done.append(told))
    assert of.shape == (steps, steps)
    np.testing.assert_allclose(of, of.T)
    assert (np.diag(of) > 0).all()
    assert done[-1] == (2 * steps, 2 * steps)
    assert [each[0] for each in done] == sorted(each[0] for each in done)

    kind = artifact.family.component(artifact.family.denoiser).kind
    monkeypatch.setitem(PLANS, (kind, "fast"), Plan(None, 4))
    found = fitted(artifact, ["an apple"], device, lambda *_: None)
    assert found["fast"][0] == 0
    assert len(found["fast"]) == 4
    assert Plan(None, 4, fitted=found["fast"]).key_steps(steps).count(True) == 4
    assert len(found["balanced"]) == sum(PLANS[kind, "balanced"].key_steps(steps))
