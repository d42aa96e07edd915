"""The tiny autoencoder: it loads in diffusers and lives in the shared autoencoder's latents."""

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from sfumato.train.embedded import dataset, tiny
from sfumato.train.embedded.autoencoder import psnr
from sfumato.train.embedded.latents import encode, to_tensor
from sfumato.train.loop import Plan


def test_decoder_takes_scaled_latents(data, vae, tmp_path):
    """The figure that training reports is that of diffusers' own decode on scaled latents."""
    lines = []
    tiny.train(data, vae, tmp_path / "tiny", Plan(steps=3, batch=2, rate=1e-3), lines.append)
    whole = AutoencoderKL.from_pretrained(vae)
    small = AutoencoderTiny.from_pretrained(tmp_path / "tiny" / "tiny")
    pictures, records = dataset.load(data)
    held = np.concatenate([dataset.indices(records, split) for split in ("concept", "pair")])

    def restore(x):
        return small.decode(whole.encode(x).latent_dist.mode() * whole.config.scaling_factor).sample

    assert float(lines[-1].split()[2]) == round(psnr(restore, pictures[held]), 2)


def test_encoder_learns_the_scaled_latents(data, vae):
    pictures, _ = dataset.load(data)
    latents = encode(AutoencoderKL.from_pretrained(vae), pictures)
    task = tiny.TinyTask(pictures, latents)
    batch = task.draw(2, np.random.default_rng(0), torch.Generator().manual_seed(0))
    figures = task(*batch)
    expected = (task.tiny.encode(batch[0]).latents - batch[1]).square().mean()
    torch.testing.assert_close(figures["latents"], expected)
    assert torch.equal(
        batch[0], to_tensor(pictures[np.random.default_rng(0).integers(len(pictures), size=2)])
    )
