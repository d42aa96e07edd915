"""The map for previews: fitted at conversion through the encoder, close to the decoded picture."""

import logging
import shutil

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageStat

from sfumato import Pipeline
from sfumato.artifact import find_model, load_artifact
from sfumato.convert.preview import fit, pictures, with_preview
from sfumato.runtime.preview import preview


def test_a_linear_map_is_found_again():
    rng = np.random.default_rng(7)
    truth = rng.uniform(-0.3, 0.3, (5, 3))
    latents = rng.standard_normal((2000, 4)).astype(np.float32)
    found = np.array(fit(latents, latents @ truth[:-1] + truth[-1]))
    assert np.abs(found - truth).max() < 0.01


def test_channels_that_say_the_same_share_the_work():
    rng = np.random.default_rng(7)
    one = rng.standard_normal((2000, 1)).astype(np.float32)
    found = np.array(fit(np.hstack([one, one, 0 * one]), one * [0.2, 0.4, -0.6] + 0.5))
    np.testing.assert_allclose(found[:2], [[0.1, 0.2, -0.3]] * 2, atol=0.01)
    assert (found[2] == 0).all()
    np.testing.assert_allclose(found[3], 0.5, atol=0.01)


def test_pictures_are_of_all_colours_and_the_same_each_time():
    made, again = np.stack(list(pictures(64))), np.stack(list(pictures(64)))
    assert made.shape[1:] == (64, 64, 3)
    assert made.dtype == np.float32
    assert made.min() == 0
    assert made.max() == 1
    assert made.std((0, 1, 2)).min() > 0.25
    assert np.array_equal(made, again)


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_converted_models_have_one(name, artifacts):
    space = load_artifact(artifacts(name)).manifest.latents
    assert np.shape(space.preview) == (space.channels + 1, 3)
    assert preview(np.zeros((1, space.channels, 4, 6), np.float32), space).size == (6, 4)


def test_none_without_an_encoder(artifacts, tmp_path):
    space = load_artifact(artifacts("sd")).manifest.latents.model_copy(update={"preview": None})
    assert with_preview(tmp_path, space).preview is None


def test_an_encoder_of_another_model_gives_none(artifacts, tmp_path, caplog):
    shutil.copytree(artifacts("sd") / "unet", tmp_path / "vae_encoder")
    space = load_artifact(artifacts("sd")).manifest.latents.model_copy(update={"preview": None})
    with caplog.at_level(logging.WARNING):
        assert with_preview(tmp_path, space) == space
    assert "gives no preview" in caplog.text


def test_previews_of_mini_are_like_its_pictures():
    pipe = Pipeline.load("mini")
    space = with_preview(find_model("mini"), pipe.artifact.manifest.latents)
    settings = {"seed": 3, "steps": 8}
    shrunk = pipe("noto dog", **settings).images[0].resize((16, 16), Image.Resampling.BOX)
    latents = pipe("noto dog", **settings, output_type="latent").images
    difference = ImageChops.difference(preview(latents, space), shrunk)
    assert np.mean(ImageStat.Stat(difference).rms) < 255 * 0.1  # 20 dB
