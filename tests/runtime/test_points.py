"""Where pictures begin: with noise, from other pictures, and in between two models."""

import logging

import numpy as np
import pytest
from PIL import Image

from sfumato import Pipeline

PROMPT = "a red apple"


@pytest.fixture(scope="module")
def picture():
    y, x = np.mgrid[0:64, 0:64] / 63
    return Image.fromarray((np.stack([x, y, 1 - x * y], axis=-1) * 255).round().astype(np.uint8))


@pytest.fixture(scope="module")
def mask():
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    return mask


def latents(pipe, **given):
    return pipe(PROMPT, seed=5, steps=10, output_type="latent", **given).images


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "euler"])
def test_strength_that_leaves_no_step_leaves_the_picture(sampler, artifacts, picture, caplog):
    """DDIM's and PNDM's last sigma is above zero: no noise of it may stay."""
    pipe = Pipeline.load(artifacts("sd"), precision="f32")
    untouched = latents(pipe, image=picture, strength=0, sampler=sampler)
    assert "strength" not in caplog.text
    with caplog.at_level(logging.WARNING):
        little = latents(pipe, image=picture, strength=0.05, sampler=sampler)
    np.testing.assert_array_equal(untouched, little)
    assert "strength 0.05 of 10 steps leaves none" in caplog.text


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
@pytest.mark.parametrize("strength", [0.5, 1])
def test_latents_outside_of_the_mask_come_out_as_they_went_in(name, strength, artifacts, picture, mask):
    pipe = Pipeline.load(artifacts(name), precision="f32")
    untouched = latents(pipe, image=picture, strength=0)
    painted = latents(pipe, image=picture, mask=mask, strength=strength)
    inside = np.zeros((8, 8), bool)
    inside[2:6, 2:6] = True
    np.testing.assert_allclose(painted[..., ~inside], untouched[..., ~inside], atol=1e-5)
    assert (np.abs(painted - untouched)[..., inside] > 1e-2).mean() > 0.9


def test_an_ordinary_refiner_keeps_what_an_inpainting_base_was_to_keep(artifacts, picture, mask):
    base, refiner = (Pipeline.load(artifacts(name), precision="f32") for name in ("sd-inpaint", "sd"))
    given = {"sampler": "ddim", "image": picture, "refiner": refiner, "switch_at": 0.5}
    untouched = latents(base, strength=0, **given)
    painted = latents(base, mask=mask, strength=0.8, **given)
    np.testing.assert_allclose(painted[..., :2, :], untouched[..., :2, :], atol=1e-5)
    assert np.abs(painted - untouched)[..., 2:6, 2:6].max() > 0.1


def test_an_inpainting_model_also_draws_from_nothing(artifacts):
    pipe = Pipeline.load(artifacts("sd-inpaint"))
    assert pipe(PROMPT, seed=1, steps=2).images[0].size == (64, 64)


def test_a_cancelled_request_encodes_no_picture(artifacts, picture, monkeypatch):
    from sfumato.errors import Cancelled

    pipe = Pipeline.load(artifacts("sd"))
    monkeypatch.setattr("sfumato.runtime.networks.Network.load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(Cancelled):
        pipe(PROMPT, image=picture, cancel=lambda: True)
