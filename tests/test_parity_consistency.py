"""Latent consistency models, whose UNet takes the guidance as an input: diffusers' latents in float32."""

import diffusers
import numpy as np
import pytest
import torch
from test_parity import NEGATIVE, PROMPT, relative_error
from test_parity_pictures import box_mask, ours, picture, theirs

import tiny
from sfumato import Pipeline
from sfumato.errors import InvalidRequest
from sfumato.runtime.guidance import guidance_embedding
from sfumato.runtime.parameters import parse_parameters

PIPELINES = {"lcm": "LatentConsistencyModelPipeline", "lcm-xl": "StableDiffusionXLPipeline"}
SIZE = (72, 56)


@pytest.fixture(params=PIPELINES)
def name(request):
    return request.param


@pytest.fixture
def pipe(name, artifacts):
    return Pipeline.load(artifacts(name), precision="f32")


@pytest.mark.parametrize("width", [16, 17, 256, 512])
@pytest.mark.parametrize("scale", [0.0, 1.0, 8.5, 14.0])
def test_the_embedding_is_that_of_diffusers(scale, width):
    reference = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding(
        None, torch.tensor([scale - 1]), embedding_dim=width
    )
    embedding = guidance_embedding(scale, width)
    assert embedding.dtype == np.float32
    # One last digit of an exponential is 8e-4 of an angle of 13000.
    np.testing.assert_allclose(embedding, reference.numpy(), atol=2e-3)


@pytest.mark.parametrize(("steps", "guidance"), [(4, 8.5), (1, 8.5), (8, 3.0), (4, 1.0)])
def test_latents_equal_diffusers(steps, guidance, name, pipe, checkpoints):
    width, height = SIZE
    given = {"num_inference_steps": steps, "guidance_scale": guidance, "width": width, "height": height}
    reference = theirs(PIPELINES[name], checkpoints(name), **given)
    made = ours(pipe, steps=steps, guidance=guidance, size=SIZE, negative_prompt=None)
    assert relative_error(made, reference) < 1e-3


def test_defaults_are_those_of_diffusers(pipe, checkpoints, name):
    made = pipe(PROMPT, size=SIZE, seed=3, output_type="latent")
    assert (made.request.sampler, made.request.steps, made.request.guidance) == ("lcm", 4, 8.5)
    if name == "lcm":
        defaults = diffusers.LatentConsistencyModelPipeline.from_pretrained(checkpoints(name))
        defaults.set_progress_bar_config(disable=True)
        reference = defaults(
            PROMPT,
            width=SIZE[0],
            height=SIZE[1],
            generator=torch.Generator().manual_seed(3),
            output_type="latent",
        )
        assert relative_error(made.images, reference.images.numpy()) < 1e-3


def test_image_to_image_equals_diffusers(name, pipe, checkpoints):
    given = {"image": picture(), "strength": 0.8}
    class_name = {"lcm": "StableDiffusionImg2ImgPipeline", "lcm-xl": "StableDiffusionXLImg2ImgPipeline"}[name]
    reference = theirs(class_name, checkpoints(name), **given)
    assert relative_error(ours(pipe, **given, negative_prompt=None), reference) < 1e-3


def test_inpainting_keeps_what_is_kept(pipe):
    mask = box_mask()
    made = ours(pipe, image=picture(), mask=mask, strength=0.7, negative_prompt=None)
    whole = ours(pipe, image=picture(), strength=0.0, negative_prompt=None)
    kept = np.asarray(mask.resize((8, 8))) == 0
    np.testing.assert_array_equal(made[..., kept], whole[..., kept])
    assert relative_error(made, whole) > 1e-2


def test_guidance_matters_in_a_single_run_of_the_denoiser(pipe, monkeypatch):
    rows = []
    call = type(pipe.denoiser).__call__

    def counting(network, inputs, outputs):
        if "timestep" in inputs:
            rows.append(inputs["timestep_cond"].shape)
        return call(network, inputs, outputs)

    monkeypatch.setattr(type(pipe.denoiser), "__call__", counting)
    one, other = (ours(pipe, guidance=scale, negative_prompt=None, steps=4) for scale in (8.5, 2.0))
    assert relative_error(one, other) > 1e-2
    assert rows == [(1, tiny.GUIDANCE_WIDTH)] * 8


def test_a_negative_prompt_has_no_effect_and_that_is_said(pipe, caplog):
    plain = pipe(PROMPT, seed=3, size=SIZE).images[0]
    assert not caplog.records
    texts = []
    request = pipe(PROMPT, seed=3, size=SIZE, negative_prompt=NEGATIVE).request
    model = pipe.artifact.manifest.name
    says = f"negative prompt: has no effect, as {model} takes the guidance as an input"
    assert [each.getMessage() for each in caplog.records] == [says]
    made = pipe.generate(request, on_image=lambda index, image, text: texts.append(text))
    assert made.images[0].tobytes() == plain.tobytes()
    said = parse_parameters(texts[0])
    assert said.negative_prompt is None
    assert said.settings["CFG scale"] == "8.5"


def test_steps_reuse_features(pipe):
    ordinary = pipe(PROMPT, seed=3, steps=16, sampler="ddim", size=SIZE)
    made = pipe(PROMPT, seed=3, steps=16, sampler="ddim", size=SIZE, reuse="fast")
    assert made.request.reuse == "fast"
    pair = [np.asarray(each.images[0], float) for each in (ordinary, made)]
    assert 0 < np.abs(pair[0] - pair[1]).mean() < 8


def test_tokens_merge(name, artifacts):
    # Not by matching: in a batch of one, OpenVINO 2026.4 crashes where it gathers rows of 64 bytes or fewer.
    pipe = Pipeline.load(artifacts(name), precision="f32", token_merging=0.5, merging_method="pool")
    whole = Pipeline.load(artifacts(name), precision="f32")
    merged, plain = (each(PROMPT, seed=3, size=SIZE, output_type="latent").images for each in (pipe, whole))
    assert 0 < relative_error(merged, plain) < 0.5


def test_base_and_refiner_take_guidance_alike(artifacts):
    pipe, refiner = (Pipeline.load(artifacts(name)) for name in ("lcm-xl", "refiner"))
    with pytest.raises(
        InvalidRequest, match=r"refiner refiner: lcm-xl takes the guidance as an input and refiner does not"
    ):
        pipe(PROMPT, refiner=refiner, seed=1)


def test_nobody_asks_for_what_only_the_model_says(pipe):
    with pytest.raises(InvalidRequest, match="unknown parameter 'guidance_embedded'"):
        pipe(PROMPT, guidance_embedded=True)
