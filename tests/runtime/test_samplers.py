"""Every sampler against its diffusers scheduler, driven the diffusers way with the same nonlinear model."""

import re
import sys
from functools import cache
from itertools import pairwise
from types import SimpleNamespace

import diffusers
import mpmath
import numpy as np
import pytest
import torch
from diffusers.schedulers import AysSchedules
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.errors import Cancelled, InvalidRequest
from sfumato.runtime.noise import Generator, randn
from sfumato.runtime.samplers import SAMPLERS, find_sampler, run, sample, sampler_for

SD15 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
SDXL = SD15 | {
    "interpolation_type": "linear",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
SD3 = {"num_train_timesteps": 1000, "shift": 3.0}
SCHEDULERS = {
    "euler": diffusers.EulerDiscreteScheduler,
    "euler-ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "ddim": diffusers.DDIMScheduler,
    "pndm": diffusers.PNDMScheduler,
    "dpmpp-2m": diffusers.DPMSolverMultistepScheduler,
    "dpmpp-2m-karras": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "lcm": diffusers.LCMScheduler,
    "flow-euler": diffusers.FlowMatchEulerDiscreteScheduler,
    "flow-renoise": diffusers.FlowMatchEulerDiscreteScheduler,
}
VP = [name for name, sampler in SAMPLERS.items() if sampler.space == "vp"]
FLOW = [name for name, sampler in SAMPLERS.items() if sampler.space == "flow"]
SHAPE = (1, 4, 8, 8)


class Net:
    """A fixed nonlinear function of latents and timestep that mixes channels and neighbours."""

    def __init__(self):
        self.mix = np.random.default_rng(5).normal(size=(4, 4)).astype(np.float32) / 2
        self.calls = []

    def __call__(self, x, timestep):
        self.calls.append((float(timestep), x))
        mixed = np.einsum("oc,bchw->bohw", self.mix, x)
        wave = np.sin(mixed + np.float32(timestep / 300.0)) + np.roll(x, 1, axis=3) * np.float32(0.3)
        return (x * np.float32(0.5) + wave * np.float32(0.5)).astype(np.float32)


def scheduler_for(name, config, prediction):
    extra = {"use_karras_sigmas": name == "dpmpp-2m-karras"} if name.startswith("dpmpp") else {}
    extra |= {"stochastic_sampling": True} if name == "flow-renoise" else {}
    extra |= {"prediction_type": prediction} if prediction != "flow" else {}
    return SCHEDULERS[name].from_config(config | extra)


def theirs(name, config, steps, prediction, seed=7, timesteps=None, **options):
    """The loop of diffusers' pipelines: its model inputs, timesteps and result."""
    scheduler, generator = scheduler_for(name, config, prediction), torch.Generator("cpu").manual_seed(seed)
    if timesteps is None:
        scheduler.set_timesteps(steps)
    else:
        scheduler.set_timesteps(timesteps=timesteps)
    x = torch.randn(SHAPE, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    return their_steps(name, scheduler, scheduler.timesteps, x, generator, options)


def their_steps(name, scheduler, timesteps, x, generator, options):
    net = Net()
    arguments = options | ({"generator": generator} if SAMPLERS[name].stochastic else {})
    for timestep in timesteps:
        scaled = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        output = torch.from_numpy(net(scaled.numpy(), timestep.item()))
        x = scheduler.step(output, timestep, x, **arguments).prev_sample
    return net, x.numpy()


def ours(name, config, steps, prediction, seed=7, eta=None, **options):
    net, generator = Net(), Generator(seed)
    sampler = SAMPLERS[name]
    schedule = sampler.schedule(config, steps, **options)
    start = schedule.begin(generator.randn(SHAPE))
    return net, schedule.finish(run(sampler, net, start, schedule, prediction, generator, eta=eta))


def relative_error(ours, theirs):
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def assert_agrees(name, config, steps, prediction):
    assert_same(name, steps, ours(name, config, steps, prediction), theirs(name, config, steps, prediction))


def assert_same(name, steps, ours, theirs):
    (net, x), (their_net, expected) = ours, theirs
    assert len(net.calls) == len(their_net.calls) == SAMPLERS[name].calls(steps)
    np.testing.assert_allclose(
        [t for t, _ in net.calls], [t for t, _ in their_net.calls], rtol=1e-6, atol=2e-3
    )
    for (_, seen), (_, their_seen) in zip(net.calls, their_net.calls, strict=True):
        assert relative_error(seen, their_seen) < 1e-4
    assert x.dtype == np.float32
    assert relative_error(x, expected) < 1e-4


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 10, 20, 28, 50])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", VP)
def test_agrees_with_diffusers_on_the_sd15_configuration(name, prediction, steps):
    assert_agrees(name, SD15, steps, prediction)


@pytest.mark.parametrize("steps", [1, 4, 20, 30])
@pytest.mark.parametrize("name", VP)
def test_agrees_with_diffusers_on_the_sdxl_configuration(name, steps):
    assert_agrees(name, SDXL, steps, "epsilon")


@pytest.mark.parametrize("steps", [1, 4, 7, 28])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", VP)
def test_agrees_with_diffusers_in_every_spacing(name, prediction, spacing, steps):
    assert_agrees(name, SD15 | {"timestep_spacing": spacing, "set_alpha_to_one": True}, steps, prediction)


@pytest.mark.parametrize("name", VP)
def test_agrees_with_diffusers_on_linear_betas(name):
    assert_agrees(name, SD15 | {"beta_schedule": "linear"}, 10, "v_prediction")


# Not euler-ancestral, whose step down from sigma 20,000 is lost in diffusers' float32, nor dpmpp-2m-karras,
# where diffusers (0.42) fails because the first timestep comes twice.
@pytest.mark.parametrize("name", ["euler", "ddim", "pndm", "dpmpp-2m", "unipc", "lcm"])
def test_agrees_with_diffusers_on_cosine_betas(name):
    assert_agrees(name, SD15 | {"beta_schedule": "squaredcos_cap_v2"}, 10, "v_prediction")


@pytest.mark.parametrize("name", [name for name in VP if name != "pndm"])
def test_agrees_with_diffusers_on_zero_terminal_snr(name):
    config = SD15 | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert_agrees(name, config, 10, "v_prediction")


@pytest.mark.parametrize("name", ["euler", "unipc", "dpmpp-2m-karras"])
@pytest.mark.parametrize("steps", [1, 2, 10, 25])
def test_agrees_with_diffusers_on_karras_sigmas(name, steps):
    assert_agrees(name, SDXL | {"use_karras_sigmas": True}, steps, "epsilon")


@cache
def beta_quantile(chance, alpha, beta):
    """scipy.stats.beta.ppf by bisection of mpmath's incomplete beta function."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        rises = mpmath.betainc(alpha, beta, 0, middle, regularized=True) < chance
        low, high = (middle, high) if rises else (low, middle)
    return high


@pytest.fixture
def scipy(monkeypatch):
    """diffusers asks SciPy for one function, which is not installed for it alone."""
    stub = SimpleNamespace(stats=SimpleNamespace(beta=SimpleNamespace(ppf=beta_quantile)))
    for scheduler in SCHEDULERS.values():
        module = sys.modules[scheduler.__module__]
        if hasattr(module, "is_scipy_available"):
            monkeypatch.setattr(module, "is_scipy_available", lambda: True)
            monkeypatch.setattr(module, "scipy", stub, raising=False)


@pytest.mark.usefixtures("scipy")
@pytest.mark.parametrize("steps", [1, 2, 10, 25])
@pytest.mark.parametrize("spacing", ["exponential", "beta", "karras"])
@pytest.mark.parametrize("name", ["euler", "dpmpp-2m", "unipc", "flow-euler"])
def test_agrees_with_diffusers_on_spaced_sigmas(name, spacing, steps):
    config, prediction = (SD3, "flow") if name == "flow-euler" else (SDXL, "epsilon")
    spaced = config | {f"use_{spacing}_sigmas": True}
    their_name = "dpmpp-2m-karras" if (name, spacing) == ("dpmpp-2m", "karras") else name
    expected = theirs(their_name, spaced, steps, prediction)
    assert_same(name, steps, ours(name, config, steps, prediction, spacing=spacing), expected)
    assert_same(name, steps, ours(their_name, spaced, steps, prediction), expected)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize(("family", "key"), [("sd", "StableDiffusion"), ("sdxl", "StableDiffusionXL")])
@pytest.mark.parametrize("name", ["euler", "dpmpp-2m"])
def test_agrees_with_diffusers_on_aligned_steps(name, family, key, spacing):
    config = SDXL | {"timestep_spacing": spacing}
    expected = theirs(name, config, 10, "epsilon", timesteps=AysSchedules[f"{key}Timesteps"])
    assert_same(name, 10, ours(name, config, 10, "epsilon", spacing="ays", family=family), expected)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("steps", [1, 4, 7, 28])
def test_ddim_agrees_with_diffusers_on_eta(steps, last, eta):
    config = SD15 | {"set_alpha_to_one": last}
    for prediction in ("epsilon", "v_prediction"):
        expected = theirs("ddim", config, steps, prediction, eta=eta)
        assert_same("ddim", steps, ours("ddim", config, steps, prediction, eta=eta), expected)


def test_eta_of_the_ancestral_sampler_scales_its_noise():
    plain, full, half, none = (
        ours("euler-ancestral", SDXL, 6, "epsilon", eta=eta)[1] for eta in (None, 1.0, 0.5, 0.0)
    )
    assert plain.tobytes() == full.tobytes()
    assert none.tobytes() == ours("euler", SDXL, 6, "epsilon")[1].tobytes()
    assert relative_error(half, full) > 1e-2
    assert relative_error(half, none) > 1e-2


def test_eta_of_the_ancestral_sampler_is_k_diffusions_formula():
    net, generator = Net(), Generator(7)
    schedule = SAMPLERS["euler-ancestral"].schedule(SDXL, 2)
    start = schedule.begin(generator.randn(SHAPE))
    sigma, following, _ = schedule.sigmas.tolist()
    seen = start / (sigma**2 + 1) ** 0.5
    derivative = net(seen.astype(np.float32), float(schedule.timesteps[0]))
    up = min(following, 0.4 * (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5)
    down = (following**2 - up**2) ** 0.5
    expected = start + derivative * (down - sigma) + generator.randn(SHAPE) * up
    heard = []
    again = Generator(7)
    again.randn(SHAPE)
    run(
        SAMPLERS["euler-ancestral"],
        Net(),
        start,
        schedule,
        "epsilon",
        again,
        lambda i, x, x0: heard.append(x),
        eta=0.4,
    )
    np.testing.assert_allclose(heard[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan"), "1", True])
def test_an_eta_out_of_range_is_refused(eta):
    with pytest.raises(InvalidRequest, match=r"eta .*: must be a finite number from 0 to 1"):
        SAMPLERS["ddim"].check_eta(eta)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("ddim", "euler-ancestral")])
def test_eta_is_refused_by_samplers_without_it(name):
    SAMPLERS[name].check_eta(None)
    others = "" if name.startswith("flow") else "choose sampler euler-ancestral or ddim, or "
    with pytest.raises(InvalidRequest, match=rf"eta 0\.5: {name} takes none; {others}leave it out$"):
        SAMPLERS[name].check_eta(0.5)


# Not pndm, whose repeated timestep moves the start by one step in diffusers.
@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("pndm", "lcm", "flow-renoise")])
def test_image_to_image_agrees_with_diffusers(name, strength):
    config, prediction = (SD3, "flow") if name in FLOW else (SDXL, "epsilon")
    clean, generator = randn(3, SHAPE) * np.float32(0.7), torch.Generator("cpu").manual_seed(4)
    scheduler = scheduler_for(name, config, prediction)
    scheduler.set_timesteps(10)
    sampler = SAMPLERS[name]
    whole = sampler.schedule(config, 10)
    part = whole.part(whole.start_for(strength))
    timesteps = scheduler.timesteps[10 - len(part) :]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(10 - len(part))
    noise = torch.randn(SHAPE, generator=generator)
    add = scheduler.scale_noise if name in FLOW else scheduler.add_noise
    arguments = [timesteps[:1], noise] if name in FLOW else [noise, timesteps[:1]]
    start = add(torch.from_numpy(clean), *arguments)
    _, expected = their_steps(name, scheduler, timesteps, start, generator, {})

    ours_noise = Generator(4)
    x = part.noised(clean, ours_noise.randn(SHAPE))
    assert x.dtype == np.float32
    result = part.finish(run(sampler, Net(), x, part, prediction, ours_noise))
    assert relative_error(result, expected) < 1e-4


@pytest.mark.parametrize("steps", [1, 2, 4, 10, 28, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", FLOW)
def test_flow_samplers_agree_with_diffusers(name, shift, steps):
    assert_agrees(name, SD3 | {"shift": shift}, steps, "flow")


@pytest.mark.parametrize("name", VP)
def test_agrees_with_diffusers_where_the_configuration_is_silent(name):
    assert_agrees(name, {"skip_prk_steps": True, "clip_sample": False}, 5, "epsilon")


def test_flow_renoise_is_its_formula():
    net, generator = Net(), Generator(3)
    x = generator.randn(SHAPE)
    result = sample("flow-renoise", Net(), x, SD3, 4, "flow", generator)
    fresh = Generator(3)
    fresh.randn(SHAPE)
    sigmas = SAMPLERS["flow-renoise"].schedule(SD3, 4).sigmas
    for sigma, following in pairwise(sigmas):
        x0 = x - sigma * net(x, sigma * 1000)
        x = (1 - following) * x0 + following * fresh.randn(SHAPE) if following else x0
    np.testing.assert_allclose(result, x, rtol=1e-5, atol=1e-5)


def perfect(name, truth, config, steps):
    """The model that sees exactly where x is between noise and truth, in the sampler's own prediction."""
    schedule = SAMPLERS[name].schedule(config, steps)
    sigma_at = dict(zip(schedule.timesteps.tolist(), schedule.sigmas.tolist(), strict=False))

    def model(x, timestep):
        sigma = sigma_at[timestep]
        if schedule.space == "flow":
            return (x - truth) / np.float32(sigma)
        return (x * np.float32((sigma**2 + 1) ** 0.5) - truth) / np.float32(sigma)

    return model


@settings(deadline=None, max_examples=80)
@given(
    name=st.sampled_from([name for name in SAMPLERS if name != "lcm"]),
    seed=st.integers(0, 2**32),
    steps=st.integers(1, 30),
)
def test_a_perfect_model_leads_every_sampler_to_the_truth(name, seed, steps):
    config = SD3 if SAMPLERS[name].space == "flow" else SD15 | {"set_alpha_to_one": True}
    truth, generator = randn(seed + 1, SHAPE), Generator(seed)
    model = perfect(name, truth, config, steps)
    prediction = "flow" if config is SD3 else "epsilon"
    result = sample(name, model, generator.randn(SHAPE), config, steps, prediction, generator)
    np.testing.assert_allclose(result, truth, atol=2e-4)


@pytest.mark.parametrize("name", ["euler", "ddim", "flow-euler"])
def test_two_parts_of_a_schedule_do_what_the_whole_does(name):
    config, prediction = (SD3, "flow") if name == "flow-euler" else (SDXL, "epsilon")
    sampler, noise = SAMPLERS[name], Generator(1)
    schedule = sampler.schedule(config, 10)
    x = schedule.begin(noise.randn(SHAPE))
    for part in (schedule.part(0, 8), schedule.part(8)):
        x = run(sampler, Net(), x, part, prediction, noise)
    assert schedule.finish(x).tobytes() == ours(name, config, 10, prediction, seed=1)[1].tobytes()


@pytest.mark.parametrize("name", SAMPLERS)
def test_on_step_hears_of_every_call_and_can_stop(name):
    config, prediction = (SD3, "flow") if name in FLOW else (SD15, "epsilon")
    heard = []

    def on_step(i, x, x0):
        assert x.shape == x0.shape == SHAPE
        assert x.dtype == x0.dtype == np.float32
        heard.append(i)
        if stop_at == i:
            raise Cancelled("stopped")

    stop_at = None
    sample(name, Net(), randn(0, SHAPE), config, 6, prediction, Generator(0), on_step)
    assert heard == list(range(SAMPLERS[name].calls(6)))

    stop_at = 2
    net = Net()
    with pytest.raises(Cancelled):
        sample(name, net, randn(0, SHAPE), config, 6, prediction, Generator(0), on_step)
    assert len(net.calls) == 3


@pytest.mark.parametrize("steps", [0, -3, 2.5, True])
def test_impossible_steps_are_refused(steps):
    with pytest.raises(InvalidRequest, match=f"steps {steps}: must be a whole number from 1 to 1000"):
        ours("euler", SD15, steps, "epsilon")


@pytest.mark.parametrize(("name", "limit"), [("ddim", 1000), ("unipc", 999), ("euler", 1000), ("lcm", 50)])
def test_more_steps_than_the_model_was_taught_are_refused(name, limit):
    SAMPLERS[name].schedule(SD15, limit)
    with pytest.raises(InvalidRequest, match=rf"steps {limit + 1}: .*(at most|to) {limit}"):
        SAMPLERS[name].schedule(SD15, limit + 1)


def test_an_unknown_sampler_is_refused_with_the_nearest_and_all_names():
    with pytest.raises(
        InvalidRequest, match=r"'eulr': .*did you mean 'euler'\?.*dpmpp-2m-karras.*flow-renoise"
    ):
        find_sampler("eulr")


def test_a_sampler_of_the_other_space_is_refused_with_those_that_fit():
    with pytest.raises(InvalidRequest, match=r"'ddim': .*flow models.*flow-euler, flow-renoise$"):
        sample("ddim", Net(), randn(0, SHAPE), SD3, 4, "flow", Generator(0))
    with pytest.raises(InvalidRequest, match=r"'flow-euler': .*vp models"):
        sample("flow-euler", Net(), randn(0, SHAPE), SD15, 4, "epsilon", Generator(0))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("dpmpp-2m", {"solver_order": 3}),
        ("dpmpp-2m", {"algorithm_type": "sde-dpmsolver++"}),
        ("unipc", {"solver_type": "bh1"}),
        ("euler", {"final_sigmas_type": "sigma_min"}),
        ("euler", {"beta_schedule": "sigmoid"}),
        ("ddim", {"timestep_spacing": "even"}),
        ("pndm", {"skip_prk_steps": False}),
        ("flow-euler", {"use_dynamic_shifting": True}),
    ],
)
def test_a_setting_that_would_change_the_picture_is_refused_by_name(name, config):
    (key, given), *_ = config.items()
    with pytest.raises(InvalidRequest, match=re.escape(f"{key} {given!r}")):
        SAMPLERS[name].schedule(config, 4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_diffusers_scheduler_classes_map_to_samplers(name):
    config = {"use_karras_sigmas": name == "dpmpp-2m-karras", "stochastic_sampling": name == "flow-renoise"}
    assert sampler_for(SCHEDULERS[name].__name__, config) == name


def test_a_scheduler_without_a_sampler_is_refused():
    with pytest.raises(InvalidRequest, match=r"'HeunDiscreteScheduler': .*EulerDiscreteScheduler"):
        sampler_for("HeunDiscreteScheduler", {})
