"""Schedules: diffusers' numbers, and what every schedule promises."""

import warnings
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.errors import InvalidRequest
from sfumato.runtime.betas import ZERO_SNR_ALPHA, train_alphas, train_sigmas
from sfumato.runtime.samplers import SAMPLERS
from sfumato.runtime.schedules import flow_schedule, lcm_schedule, pndm_schedule

SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_training_noise_equals_diffusers_bit_for_bit(schedule):
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": schedule}
    expected = diffusers.DDIMScheduler(**config).alphas_cumprod.numpy()
    assert train_alphas(config, ZERO_SNR_ALPHA).tobytes() == expected.tobytes()


def test_zero_terminal_snr_ends_in_noise_alone():
    config = SD15 | {"rescale_betas_zero_snr": True}
    expected = diffusers.EulerDiscreteScheduler(
        **{key: value for key, value in config.items() if key != "steps_offset"}
    ).alphas_cumprod.numpy()
    alphas = train_alphas(config, ZERO_SNR_ALPHA)
    assert alphas[-1] == np.float32(2.0**-24)
    np.testing.assert_allclose(alphas, expected, rtol=1e-5)


def test_betas_given_one_by_one_are_used():
    sigmas = train_sigmas({"trained_betas": [0.5, 0.5], "beta_schedule": "linear"}, ZERO_SNR_ALPHA)
    np.testing.assert_allclose(sigmas, [1.0, 3**0.5], rtol=1e-6)


def test_flow_shift_is_applied_twice():
    schedule = flow_schedule({"shift": 3.0}, 4)
    np.testing.assert_allclose(schedule.sigmas, [1, 0.85769, 0.60215, 0.00893, 0], atol=5e-6)
    np.testing.assert_allclose(schedule.timesteps, schedule.sigmas[:-1] * 1000, rtol=1e-6)


def test_lcm_timesteps_are_those_of_its_distillation():
    assert lcm_schedule({}, 4).timesteps.tolist() == [999, 759, 499, 259]
    assert lcm_schedule({"original_inference_steps": 100}, 2).timesteps.tolist() == [999, 499]


def test_pndm_ends_above_zero_and_finish_accounts_for_it():
    schedule = pndm_schedule(SD15, 50)
    assert schedule.timesteps[[0, -1]].tolist() == [981, 1]
    assert schedule.sigmas[-1] == pytest.approx((0.00085 / (1 - 0.00085)) ** 0.5, rel=1e-4)
    ones = np.ones((1, 4, 2, 2), np.float32)
    np.testing.assert_allclose(schedule.finish(ones), (1 - 0.00085) ** 0.5, rtol=1e-6)
    np.testing.assert_allclose(schedule.begin(ones), np.hypot(schedule.sigmas[0], 1), rtol=1e-6)


def test_none_in_a_configuration_means_the_default():
    silent = SAMPLERS["euler"].schedule({}, 5)
    null = SAMPLERS["euler"].schedule(
        {"timestep_spacing": None, "beta_start": None, "trained_betas": None}, 5
    )
    assert silent.sigmas.tobytes() == null.sigmas.tobytes()


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from(list(SAMPLERS)),
    spacing=st.sampled_from(["leading", "linspace", "trailing"]),
    betas=st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
    steps=st.integers(1, 50),
    shift=st.floats(0.5, 12.0),
)
def test_every_schedule_falls_and_says_what_the_model_needs(name, spacing, betas, steps, shift):
    config = SD15 | {"timestep_spacing": spacing, "beta_schedule": betas, "shift": shift}
    schedule = SAMPLERS[name].schedule(config, steps)
    assert len(schedule) == steps
    assert schedule.sigmas.dtype == schedule.timesteps.dtype == np.float32
    assert schedule.sigmas.shape == (steps + 1,)
    assert np.all(np.diff(schedule.sigmas) <= 0)
    assert np.all(np.diff(schedule.timesteps) <= 0)
    assert np.all(schedule.sigmas[:-1] > 0)
    assert np.all((schedule.timesteps >= 0) & (schedule.timesteps <= 1000))


@given(name=st.sampled_from(list(SAMPLERS)), start=st.integers(0, 10), length=st.integers(0, 10))
def test_a_part_keeps_its_own_steps(name, start, length):
    whole = SAMPLERS[name].schedule(SD15, 20)
    part = whole.part(start, start + length)
    assert len(part) == length
    assert part.sigmas.tolist() == whole.sigmas[start : start + length + 1].tolist()
    for i in range(length):
        assert part.landing(i) == whole.landing(start + i)
    assert whole.part(start).sigmas[-1] == whole.sigmas[-1]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("euler", {"beta_start": -1}, "scheduler_config beta_start -1: must be a number from 0 to 1"),
        ("ddim", {"beta_start": "NaN"}, "beta_start 'NaN'"),
        ("unipc", {"beta_end": float("nan")}, "beta_end nan"),
        ("pndm", {"beta_end": True}, "beta_end True"),
        ("dpmpp-2m", {"beta_end": 1e400}, "beta_end inf"),
        ("euler", {"beta_end": 1}, "no usable noise levels"),
        ("euler", {"beta_start": 0, "beta_end": 0}, "no usable noise levels"),
        ("dpmpp-2m-karras", {"beta_start": 0, "beta_end": 0}, "noise level"),
        ("lcm", {"num_train_timesteps": 10**9}, "num_train_timesteps 1000000000: must be a number from 2"),
        ("flow-euler", {"num_train_timesteps": 0}, "num_train_timesteps 0"),
        ("flow-renoise", {"shift": 0}, "shift 0: must be a number from 0.001 to 1000"),
        ("lcm", {"original_inference_steps": 0}, "original_inference_steps 0"),
        ("lcm", {"original_inference_steps": 10**6}, "original_inference_steps 1000000"),
        ("ddim", {"steps_offset": [1]}, r"steps_offset \[1\]"),
        ("euler", {"trained_betas": "0.1"}, "trained_betas: must be a list of numbers between 0 and 1"),
        ("euler", {"trained_betas": [0.1, [0.2]]}, "trained_betas"),
        ("euler", {"trained_betas": [0.1, float("nan")]}, "trained_betas"),
        ("euler", {"trained_betas": []}, "trained_betas"),
        ("euler", {"beta_schedule": {"a": 1}}, "beta_schedule"),
        ("euler", {"timestep_spacing": 3}, "timestep_spacing"),
    ],
)
def test_nonsense_in_a_scheduler_config_is_named(name, config, message):
    with pytest.raises(InvalidRequest, match=message), warnings.catch_warnings():
        warnings.simplefilter("error")
        SAMPLERS[name].schedule(config, 4)


@pytest.mark.parametrize("name", ["unipc", "dpmpp-2m"])
def test_two_steps_at_one_noise_level_are_refused(name):
    config = SD15 | {"timestep_spacing": "leading", "steps_offset": 1}
    with pytest.raises(InvalidRequest, match="steps 999: some would start at the same noise level"):
        SAMPLERS[name].schedule(config, 999)


def test_keys_that_no_sampler_knows_are_ignored():
    known, more = (SAMPLERS["euler"].schedule(config, 4) for config in (SD15, SD15 | {"novelty": [[1]]}))
    np.testing.assert_array_equal(known.sigmas, more.sigmas)


@pytest.mark.parametrize("name", SAMPLERS)
def test_more_than_a_thousand_steps_are_refused(name):
    with pytest.raises(InvalidRequest, match="steps 1000000000"):
        SAMPLERS[name].schedule({}, 10**9)


def fake_pipe(schedule):
    """What diffusers' pipelines need of a scheduler to choose their timesteps."""
    scheduler = SimpleNamespace(
        timesteps=torch.from_numpy(schedule.timesteps),
        order=1,
        config=SimpleNamespace(num_train_timesteps=schedule.train_timesteps),
    )
    return SimpleNamespace(scheduler=scheduler)


@pytest.mark.parametrize("steps", [1, 3, 10, 28, 50])
@pytest.mark.parametrize("strength", [0.0, 0.02, 0.3, 0.58, 0.75, 0.9, 1.0])
def test_image_to_image_starts_where_it_does_in_diffusers(strength, steps):
    pipelines = {
        "euler": [diffusers.StableDiffusionImg2ImgPipeline, diffusers.StableDiffusionXLImg2ImgPipeline],
        "flow-euler": [diffusers.StableDiffusion3Img2ImgPipeline],
    }
    for name, classes in pipelines.items():
        schedule = SAMPLERS[name].schedule(SD15, steps)
        for pipeline in classes:
            _, left = pipeline.get_timesteps(fake_pipe(schedule), steps, strength, "cpu")
            assert schedule.start_for(strength) == steps - left
    assert schedule.start_for(0.0) == steps
    assert schedule.start_for(1.0) == 0


@pytest.mark.parametrize("train", [1000, 900])
@pytest.mark.parametrize("switch_at", [0.05, 0.5, 0.777, 0.8, 0.95])
@pytest.mark.parametrize("name", SAMPLERS)
def test_stages_are_cut_where_diffusers_cuts_them(name, switch_at, train):
    schedule = SAMPLERS[name].schedule(SD15 | {"num_train_timesteps": train}, 25)
    assert schedule.train_timesteps == train
    refine = diffusers.StableDiffusionXLImg2ImgPipeline.get_timesteps
    _, left = refine(fake_pipe(schedule), 25, 1.0, "cpu", denoising_start=switch_at)
    assert schedule.cut(switch_at) == 25 - left
    assert schedule.cut(1.0) == 25


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_timestep_leads_back_to_its_step(name):
    schedule = SAMPLERS[name].schedule(SD15, 20)
    assert [schedule.index(timestep) for timestep in schedule.timesteps.tolist()] == list(range(20))


def test_a_given_shift_goes_before_the_configured_one():
    given = SAMPLERS["flow-euler"].schedule({"shift": 3.0}, 4, shift=1.5)
    assert given.sigmas.tolist() == flow_schedule({"shift": 1.5}, 4).sigmas.tolist()


@pytest.mark.parametrize("shift", [0.0, -1.0, 1001.0, float("nan"), "3", True])
def test_a_shift_out_of_range_is_refused(shift):
    with pytest.raises(InvalidRequest, match=r"shift .*: must be a finite number from 0\.001 to 1000"):
        SAMPLERS["flow-euler"].schedule({}, 4, shift=shift)


def test_models_that_are_no_flow_have_no_shift():
    with pytest.raises(InvalidRequest, match=r"shift 3\.0: only flow models"):
        SAMPLERS["euler"].schedule(SD15, 4, shift=3.0)


@pytest.mark.parametrize(
    ("name", "spacing", "message"),
    [
        (
            "ddim",
            "karras",
            r"'karras': ddim takes none; samplers that take it: euler, dpmpp-2m, dpmpp-2m-kar",
        ),
        ("euler-ancestral", "beta", r"'beta': euler-ancestral takes ays; samplers .* euler, dpmpp-2m, unipc"),
        ("dpmpp-2m-karras", "beta", r"'beta': dpmpp-2m-karras takes karras; "),
        ("flow-euler", "ays", r"'ays': flow-euler takes karras, exponential, beta; .*: none"),
        ("euler", "even", "'even': no such spacing"),
    ],
)
def test_a_spacing_that_a_sampler_cannot_use_is_refused(name, spacing, message):
    with pytest.raises(InvalidRequest, match=message):
        SAMPLERS[name].schedule(SD15, 4, spacing=spacing, family="sd")
