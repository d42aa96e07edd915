"""Noise for training: the schedulers of diffusers say the same."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)

from sfumato.train.qat.levels import NOISING, Diffusion, Flow
from tiny import BETAS

LATENTS = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(1))
TIMESTEPS = torch.tensor([0, 1, 250, 500, 750, 999])


@pytest.mark.parametrize("kind", [PNDMScheduler, DDIMScheduler, EulerDiscreteScheduler, DDPMScheduler])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_diffusion_is_that_of_diffusers(kind, prediction):
    noising = NOISING[prediction](kind(**BETAS, prediction_type=prediction))
    reference = DDPMScheduler(**BETAS, prediction_type=prediction)
    noised, target = noising.mix(LATENTS, NOISE, TIMESTEPS)
    torch.testing.assert_close(noised, reference.add_noise(LATENTS, NOISE, TIMESTEPS))
    velocity = reference.get_velocity(LATENTS, NOISE, TIMESTEPS)
    torch.testing.assert_close(target, NOISE if prediction == "epsilon" else velocity)
    assert noised.dtype == target.dtype == torch.float32


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_that_of_diffusers(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    noising = NOISING["flow"](scheduler)
    scheduler.set_timesteps(6)
    timesteps = scheduler.timesteps
    noised, target = noising.mix(LATENTS, NOISE, timesteps)
    torch.testing.assert_close(noised, scheduler.scale_noise(LATENTS, timesteps, NOISE))
    torch.testing.assert_close(target, NOISE - LATENTS)
    back = noised - (timesteps / 1000)[:, None, None, None] * target
    torch.testing.assert_close(back, LATENTS, rtol=0, atol=1e-5)


def test_timesteps_of_diffusion_are_even():
    noising = Diffusion(PNDMScheduler(**BETAS))
    drawn = noising.timesteps(20_000, torch.Generator().manual_seed(0))
    assert not drawn.is_floating_point() and drawn.min() == 0 and drawn.max() == 999
    assert float(drawn.float().mean()) == pytest.approx(499.5, abs=8)
    assert torch.equal(drawn, noising.timesteps(20_000, torch.Generator().manual_seed(0)))
    assert not torch.equal(drawn, noising.timesteps(20_000, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_timesteps_of_flows_are_logit_normal_and_shifted(shift):
    noising = Flow(FlowMatchEulerDiscreteScheduler(shift=shift))
    drawn = noising.timesteps(20_000, torch.Generator().manual_seed(0))
    assert drawn.is_floating_point() and drawn.min() > 0 and drawn.max() < 1000
    for normal, share in ((-1.0, 0.1587), (0.0, 0.5), (1.0, 0.8413)):
        sigma = 1 / (1 + 2.718281828**-normal)
        timestep = 1000 * shift * sigma / (1 + (shift - 1) * sigma)
        assert float((drawn < timestep).float().mean()) == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize(
    "noising", [Diffusion(PNDMScheduler(**BETAS)), Flow(FlowMatchEulerDiscreteScheduler())]
)
@pytest.mark.parametrize("count", [1, 7, 300])
def test_spread_timesteps_are_even(noising, count):
    spread = noising.spread(count)
    assert spread.shape == (count,) and spread.min() >= 0 and spread.max() < 1000
    torch.testing.assert_close(
        spread.float().diff(), torch.full((count - 1,), 1000 / count), rtol=0, atol=1.001
    )


def test_every_prediction_has_its_noise():
    assert NOISING.keys() == {"epsilon", "v_prediction", "flow"}


def test_errors_weigh_by_what_they_change_in_a_sample():
    scheduler = DDPMScheduler()
    epsilon = NOISING["epsilon"](scheduler)
    every = epsilon.weight(torch.arange(1000))
    sigma = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    torch.testing.assert_close(every / every[0], (1 + sigma**2) / (1 + sigma[0] ** 2))
    torch.testing.assert_close(every.mean(), torch.tensor(1.0))
    v = NOISING["v_prediction"](DDPMScheduler(prediction_type="v_prediction"))
    flow = NOISING["flow"](FlowMatchEulerDiscreteScheduler())
    for plain in (v, flow):
        assert (plain.weight(torch.tensor([1, 500, 999])) == 1).all()
