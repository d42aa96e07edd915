"""Spacings of noise levels: the published numbers, and references that compute them in another way."""

import mpmath
import numpy as np
import pytest
from diffusers.schedulers import AysSchedules
from hypothesis import given
from hypothesis import strategies as st

from sfumato.errors import InvalidRequest
from sfumato.runtime.spacings import (
    AYS_TIMESTEPS,
    SPACINGS,
    ays_sigmas,
    beta_quantiles,
    configured_spacing,
    find_spacing,
    karras_sigmas,
)

SCIPY = [0.0, 1.8558739e-05, 0.039584405589, 0.175680378653, 0.5, 0.960415594411, 1.0]


@pytest.mark.parametrize("shape", [0.6, 0.5, 1.0])
def test_beta_quantiles_invert_the_distribution(shape):
    chances = 1.0 - np.linspace(0.0, 1.0, 41)
    quantiles = beta_quantiles(chances, shape)
    back = [float(mpmath.betainc(shape, shape, 0, x, regularized=True)) for x in quantiles]
    np.testing.assert_allclose(back, chances, atol=1e-9)
    np.testing.assert_allclose(quantiles + beta_quantiles(1.0 - chances, shape), 1.0, atol=1e-12)


def test_beta_quantiles_are_those_of_scipy():
    """scipy.stats.beta.ppf(chances, 0.6, 0.6) of SciPy 1.17."""
    chances = np.array([0.0, 0.001, 0.1, 0.25, 0.5, 0.9, 1.0])
    np.testing.assert_allclose(beta_quantiles(chances, 0.6), SCIPY, atol=1e-9)


@pytest.mark.parametrize(("family", "name"), [("sd", "StableDiffusion"), ("sdxl", "StableDiffusionXL")])
def test_ten_aligned_steps_are_the_published_ones(family, name):
    assert list(AYS_TIMESTEPS[family][:10]) == AysSchedules[f"{name}Timesteps"]
    sigmas = find_spacing("ays", family).sigmas(14.6, 0.03, 10)
    np.testing.assert_allclose(sigmas, AysSchedules[f"{name}Sigmas"][:-1], rtol=0.02)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_other_numbers_of_aligned_steps_are_log_linear_between_them(steps):
    levels = np.log([*ays_sigmas(AYS_TIMESTEPS["sd"], 14.6, 0.03, 10), 0.029167])
    places = np.arange(steps) * 10 / steps
    below = np.floor(places).astype(int)
    expected = levels[below] + (places - below) * (levels[below + 1] - levels[below])
    sigmas = ays_sigmas(AYS_TIMESTEPS["sd"], 14.6, 0.03, steps)
    np.testing.assert_allclose(np.log(sigmas), expected, atol=1e-5)


def test_aligned_steps_refuse_models_of_much_more_noise():
    with pytest.raises(
        InvalidRequest, match=r"'ays': begins at sigma 14\.6, but .* 4096\.0; choose one of karras"
    ):
        find_spacing("ays", "sd").sigmas(4096.0, 0.03, 10)


def test_karras_sigmas_join_their_ends():
    sigmas = karras_sigmas(14.6, 0.03, 20)
    assert sigmas[[0, -1]] == pytest.approx([14.6, 0.03])
    assert karras_sigmas(14.6, 0.03, 1) == pytest.approx([14.6])


@given(name=st.sampled_from(SPACINGS), steps=st.integers(1, 100))
def test_every_spacing_falls_from_the_largest(name, steps):
    sigmas = find_spacing(name, "sdxl").sigmas(14.6146, 0.0292, steps)
    assert len(sigmas) == steps
    assert sigmas[0] == pytest.approx(14.6146, rel=1e-4)
    assert sigmas[-1] >= 0.0292 - 1e-9
    assert np.all(np.diff(sigmas) < 0)


def test_an_unknown_spacing_is_refused_with_the_nearest():
    with pytest.raises(InvalidRequest, match=r"'karas': .*did you mean 'karras'\?.*exponential, beta, ays"):
        find_spacing("karas")


@pytest.mark.parametrize("family", ["sd3", None])
def test_aligned_steps_of_other_families_are_refused(family):
    with pytest.raises(InvalidRequest, match=f"published for the families sd and sdxl, not for {family}; "):
        find_spacing("ays", family)


def test_a_configuration_may_ask_for_one_spacing():
    assert configured_spacing({"use_karras_sigmas": False, "use_beta_sigmas": None}) is None
    assert configured_spacing({"use_beta_sigmas": True}) == "beta"
    with pytest.raises(InvalidRequest, match="use_karras_sigmas and use_beta_sigmas: only one"):
        configured_spacing({"use_beta_sigmas": True, "use_karras_sigmas": True})
