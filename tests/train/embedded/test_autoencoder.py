"""The shared autoencoder: centred latents, kept latents."""

import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from sfumato.errors import InvalidRequest
from sfumato.train.embedded import autoencoder, dataset
from sfumato.train.embedded.latents import cached_latents, encode
from sfumato.train.loop import Plan


def test_autoencoder_centers_its_latents(data, vae):
    model = AutoencoderKL.from_pretrained(vae)
    pictures, records = dataset.load(data)
    latents = encode(model, pictures[dataset.indices(records, "train")])
    assert latents.shape[1:] == (12, 16, 16)
    assert float((latents * model.config.scaling_factor).std()) == pytest.approx(1, abs=0.05)
    assert latents.mean((0, 2, 3)).abs().max() < 0.05 * latents.std()


def test_latents_follow_their_autoencoder(data, vae, tmp_path):
    """Another encoder in the same run's folder must not be answered with the old latents."""
    pictures, _ = dataset.load(data)
    rows = np.arange(4)
    model = AutoencoderKL.from_pretrained(vae)
    first = cached_latents(model, pictures, rows, tmp_path)
    assert torch.equal(cached_latents(model, pictures, rows, tmp_path), first)
    with torch.no_grad():
        model.encoder.conv_out.bias += 1
    second = cached_latents(model, pictures, rows, tmp_path)
    assert not torch.equal(second, first)
    model.register_to_config(scaling_factor=2 * model.config.scaling_factor)
    assert torch.equal(cached_latents(model, pictures, rows, tmp_path), 2 * second)


def test_psnr_is_that_of_the_pictures(data, vae):
    """Against the definition, through diffusers' own encode and decode."""
    model = AutoencoderKL.from_pretrained(vae)
    pictures, _ = dataset.load(data)
    x = torch.from_numpy(pictures[:3].astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        y = model.decode(model.encode(x).latent_dist.mode()).sample
    restored = ((y / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    errors = ((restored - pictures[:3]) ** 2).mean((1, 2, 3))
    expected = np.mean(10 * np.log10(255**2 / errors))
    assert autoencoder.psnr(autoencoder.through(model), pictures[:3]) == pytest.approx(expected, abs=0.05)


def test_an_encoder_that_nobody_trained_is_not_frozen(data, tmp_path):
    stage, plan = autoencoder.Stage(freeze_encoder=True), Plan(steps=1, batch=2, rate=1e-3)
    with pytest.raises(InvalidRequest, match="give --start"):
        autoencoder.train(data, tmp_path, plan, stage)


@pytest.mark.parametrize(
    ("changes", "what"), [({"latent_noise": -1.0}, "noise"), ({"corners": math.nan}, "corners")]
)
def test_a_stage_of_no_sense_is_refused(changes, what):
    with pytest.raises(InvalidRequest, match=f"{what}.*0 or more"):
        autoencoder.Stage(**changes)


def test_corners_weigh_by_themselves(data, vae):
    """Of two pictures that are wrong in as many places, the one that is wrong in a corner costs more."""
    pictures, _ = dataset.load(data)
    model = AutoencoderKL.from_pretrained(vae)
    losses = {}
    for weight in (0.0, 2.0):
        task = autoencoder.AutoencoderTask(model, autoencoder.Stage(corners=weight), np.array(pictures[:2]))
        batch = task.draw(2, np.random.default_rng(0), torch.Generator().manual_seed(0))
        losses[weight] = task(*batch)["loss"]
    assert losses[2.0] > losses[0.0]
    x = torch.zeros(1, 3, 128, 128)
    corner, middle = x.clone(), x.clone()
    corner[..., 120:, :8], middle[..., 60:68, 60:68] = 1, 1
    assert autoencoder.corners(x).shape[-2:] == (24, 24)
    assert autoencoder.corners(corner).sum() == corner.sum()
    assert autoencoder.corners(middle).sum() == 0
