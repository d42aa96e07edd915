"""Guidance around a denoiser: diffusers' numbers, and what runs at which step."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from sfumato.artifact import load_artifact
from sfumato.errors import InvalidRequest
from sfumato.families import SD
from sfumato.runtime.devices import Device
from sfumato.runtime.guidance import Guidance, GuidedModel, compared, rescaled
from sfumato.runtime.networks import Network
from sfumato.runtime.noise import Generator
from sfumato.runtime.samplers import SAMPLERS, run

PROMPT, NEGATIVE = "a smiling red apple", "green house"
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE = SAMPLERS["euler"].schedule(CONFIG, 6)
LATENTS = (1, 4, 2, 2)


class Line:
    """A network whose prediction is linear in its prompt; it writes down the batches it gets."""

    def __init__(self):
        self.batches, self.loaded, self.released = [], [], False

    def load(self, inputs, outputs):
        self.loaded.append(inputs["sample"][0])

    def release(self):
        self.released = True

    def __call__(self, inputs, outputs):
        prompts = inputs["encoder_hidden_states"]
        self.batches.append(prompts.ravel().tolist())
        return {"out_sample": inputs["sample"] * prompts[:, None, None, :1]}


def guided(guidance, network=None, conditions=(3.0, 1.0), keys=None):
    conditioning = [{"encoder_hidden_states": np.full((1, 1), each, np.float32)} for each in conditions]
    return GuidedModel(network or Line(), SD, conditioning, guidance, SCHEDULE, keys=keys)


def latents(seed=1):
    return Generator(seed).randn(LATENTS)


def test_prompts_run_as_one_batch_negative_first():
    net = Line()
    model = guided(Guidance(5.0), net)
    model.load(LATENTS)
    x = latents()
    result = model(x, float(SCHEDULE.timesteps[0]))
    assert (net.loaded, net.batches) == ([2], [[1.0, 3.0]])
    np.testing.assert_array_equal(result, x + np.float32(5.0) * (x * 3 - x))


def test_a_prompt_alone_is_not_guided():
    net = Line()
    model = guided(Guidance(5.0, rescale=0.5, interval=(0.0, 20.0)), net, conditions=(3.0,))
    np.testing.assert_array_equal(model(latents(), float(SCHEDULE.timesteps[0])), latents() * 3)
    assert net.batches == [[3.0]]


def test_outside_of_its_interval_only_the_prompt_runs():
    net, sigmas = Line(), SCHEDULE.sigmas.tolist()
    model = guided(Guidance(5.0, interval=(sigmas[4], sigmas[2])), net)
    model.load(LATENTS)
    assert net.loaded == [1]
    results = [model(latents(), timestep) for timestep in SCHEDULE.timesteps.tolist()]
    both, alone = [[1.0], [3.0]], [[3.0]]
    assert net.batches == [*alone, *alone, *both, *both, *alone, *alone]
    np.testing.assert_array_equal(results[0], latents() * 3)
    np.testing.assert_array_equal(results[2], guided(Guidance(5.0))(latents(), float(SCHEDULE.timesteps[2])))


def test_the_negative_prompt_runs_every_so_many_steps():
    net = Line()
    model = guided(Guidance(5.0, every=2), net)
    model.load(LATENTS)
    assert net.loaded == [1]
    results = [model(latents(), timestep) for timestep in SCHEDULE.timesteps.tolist()]
    assert net.batches == [*[[1.0], [3.0]] * 4, [3.0], [1.0], [3.0]]
    for step, result in enumerate(results):
        whole = guided(Guidance(5.0))(latents(), float(SCHEDULE.timesteps[step]))
        np.testing.assert_allclose(result, whole, rtol=1e-5)


def test_between_the_difference_goes_on_along_its_line():
    class Growing(Line):
        """Each run of the negative prompt predicts more."""

        def __call__(self, inputs, outputs):
            share = 1 + self.batches.count([1.0]) if inputs["encoder_hidden_states"][0, 0] == 1.0 else 0
            super().__call__(inputs, outputs)
            return {"out_sample": np.full(LATENTS, -share, np.float32)}

    model = guided(Guidance(5.0, every=2), Growing())
    results = [float(model(latents(), each)[0, 0, 0, 0]) for each in SCHEDULE.timesteps.tolist()]
    # The prompt predicts 0, the negative one -1 to -5 at steps 0 to 3 and 5; guided is 4 times as much.
    np.testing.assert_allclose(results, [4, 8, 12, 16, 20, 20], rtol=1e-6)


def test_after_the_first_steps_the_negative_prompt_runs_once_in_so_many():
    assert compared(9, 1) == [True] * 9
    assert compared(9, 2) == [*[True] * 4, False, True, False, True, False]
    assert compared(9, 3) == [*[True] * 4, False, False, True, False, False]


def test_with_reuse_the_negative_prompt_runs_at_key_steps_only():
    keys = [True, False, True, True, False, True]
    assert compared(6, 1, keys) == [True] * 6
    assert compared(6, 2, keys) == compared(6, 5, keys) == keys
    net = Line()
    model = guided(Guidance(5.0, every=2), net, keys=keys)
    for timestep in SCHEDULE.timesteps.tolist():
        model(latents(), timestep)
    assert net.batches.count([1.0]) == 4
    assert net.batches.count([3.0]) == 6


def test_the_next_picture_begins_anew():
    net = Line()
    model = guided(Guidance(5.0, interval=(0.0, float(SCHEDULE.sigmas[4])), every=3), net)
    for timestep in SCHEDULE.timesteps.tolist()[4:] * 2:
        model(latents(), timestep)
    # Step 4 would do without the negative prompt if step 4 or 5 of the picture before told it anything.
    assert net.batches == [[1.0], [3.0], [3.0]] * 2


def test_where_guidance_begins_both_run():
    net, sigmas = Line(), SCHEDULE.sigmas.tolist()
    model = guided(Guidance(5.0, interval=(0.0, sigmas[4]), every=3), net)
    for timestep in SCHEDULE.timesteps.tolist():
        model(latents(), timestep)
    both, alone = [[1.0], [3.0]], [[3.0]]
    assert net.batches == [*alone * 4, *both, *alone]


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_rescaling_is_that_of_diffusers(share):
    one, other = (np.random.default_rng(seed).normal(size=(2, 4, 8, 8)).astype(np.float32) for seed in (1, 2))
    expected = rescale_noise_cfg(torch.from_numpy(one * 3), torch.from_numpy(other), share).numpy()
    np.testing.assert_allclose(rescaled(one * 3, other, share), expected, rtol=1e-5, atol=1e-6)
    assert rescaled(one, other, 0.0) is one


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rescale": 1.5}, "guidance rescale 1.5: must be a finite number from 0 to 1"),
        ({"rescale": float("nan")}, "guidance rescale nan"),
        (
            {"interval": (2.0, 1.0)},
            r"guidance interval 2\.0 to 1\.0: must be two noise levels from 0, rising",
        ),
        ({"interval": (-1.0, 1.0)}, "guidance interval -1.0"),
    ],
)
def test_nonsense_is_refused(values, message):
    with pytest.raises(InvalidRequest, match=message):
        Guidance(5.0, **values)


def test_rescaled_guidance_paints_what_diffusers_paints(checkpoints, artifacts):
    pipe = StableDiffusionPipeline.from_pretrained(checkpoints("sd"), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    prompts = pipe.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)
    conditioning = [{"encoder_hidden_states": each.detach().numpy()} for each in prompts]
    artifact = load_artifact(artifacts("sd"))
    sampler = SAMPLERS[artifact.manifest.sampling.sampler]
    schedule = sampler.schedule(artifact.manifest.sampling.scheduler, 4)
    network = Network(artifact, "unet", Device("CPU", "f32"))

    def ours(guidance):
        noise = Generator(5)
        x = schedule.begin(noise.randn((1, 4, 8, 8)))
        model = GuidedModel(network, artifact.family, conditioning, guidance, schedule)
        return schedule.finish(run(sampler, model, x, schedule, "epsilon", noise))

    noise = torch.from_numpy(Generator(5).randn((1, 4, 8, 8)))
    options = {
        "num_inference_steps": 4,
        "guidance_scale": 7.0,
        "guidance_rescale": 0.7,
        "output_type": "latent",
    }
    expected = pipe(
        PROMPT, negative_prompt=NEGATIVE, latents=noise, width=64, height=64, **options
    ).images.numpy()
    assert relative_error(ours(Guidance(7.0, rescale=0.7)), expected) < 1e-3
    assert relative_error(ours(Guidance(7.0)), expected) > 5e-3


def relative_error(ours, theirs):
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
