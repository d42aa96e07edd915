"""TAESD's decoder in the place of a checkpoint's own."""

import json
import shutil

import numpy as np
import openvino as ov
import pytest
import torch
from diffusers import AutoencoderTiny

import sfumato
from sfumato.artifact import load_artifact
from sfumato.cli import main
from sfumato.errors import CheckpointError, InvalidRequest

F32 = {"INFERENCE_PRECISION_HINT": "f32"}


def tiny_vae(folder, checkpoint, **changes):
    """A random tiny autoencoder for the latents of a checkpoint, in `folder`."""
    vae = json.loads((checkpoint / "vae/config.json").read_text())
    blocks = len(vae["block_out_channels"])
    torch.manual_seed(0)
    settings = {
        "latent_channels": vae["latent_channels"],
        "encoder_block_out_channels": (16,) * blocks,
        "decoder_block_out_channels": (16,) * blocks,
        "num_encoder_blocks": (1,) * blocks,
        "num_decoder_blocks": (1,) * blocks,
    }
    AutoencoderTiny(**settings | changes).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_decodes_scaled_latents_as_diffusers_does(name, checkpoints, artifacts, tmp_path):
    folder = tiny_vae(tmp_path / "taesd", checkpoints(name))
    out = tmp_path / "out"
    manifest = sfumato.convert(checkpoints(name), out, precision="fp32", tiny_decoder=folder).manifest
    space = load_artifact(artifacts(name)).manifest.latents
    assert manifest.latents == space
    latents = np.random.default_rng(0).standard_normal((1, space.channels, 6, 5), np.float32)
    with torch.no_grad():
        wanted = AutoencoderTiny.from_pretrained(folder).decode(torch.from_numpy(latents)).sample.numpy()
    network = ov.Core().compile_model(out / "vae_decoder/openvino_model.xml", "CPU", F32)
    decoded = network({"latent_sample": latents / space.scale + space.shift})["sample"]
    np.testing.assert_allclose(decoded, wanted, atol=1e-4)
    encoders = [path / "vae_encoder/openvino_model.bin" for path in (out, artifacts(name))]
    assert encoders[0].read_bytes() == encoders[1].read_bytes()
    assert any(file.endswith("taesd/diffusion_pytorch_model.safetensors") for file in manifest.source)


def test_generates_and_starts_from_pictures(checkpoints, tmp_path):
    folder = tiny_vae(tmp_path / "taesd", checkpoints("sd"))
    out = tmp_path / "out"
    assert main(["convert", str(checkpoints("sd")), str(out), "--tiny-decoder", str(folder), "-q"]) == 0
    pipe = sfumato.Pipeline.load(out, threads=1)
    image = pipe("a red apple", steps=2, seed=0).images[0]
    again = pipe("a red apple", steps=2, seed=0, image=image, strength=0.5).images[0]
    assert again.size == image.size
    assert len(np.unique(np.asarray(image))) > 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 7}, "latents of 7 channels, the checkpoint's have 4"),
        (
            {
                "decoder_block_out_channels": (16,) * 6,
                "num_decoder_blocks": (1,) * 6,
            },
            "makes 32 pixels of a latent",
        ),
    ],
)
def test_a_decoder_of_other_latents_is_refused(changes, message, checkpoints, tmp_path):
    folder = tiny_vae(tmp_path / "taesd", checkpoints("sd"), **changes)
    with pytest.raises(CheckpointError, match=message):
        sfumato.convert(checkpoints("sd"), tmp_path / "out", tiny_decoder=folder)
    assert not (tmp_path / "out").exists()


def test_what_is_no_tiny_decoder_is_refused(checkpoints, artifacts, tmp_path):
    source, out = checkpoints("sd"), tmp_path / "out"
    with pytest.raises(CheckpointError, match="no folder"):
        sfumato.convert(source, out, tiny_decoder=tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="'AutoencoderKL' is no tiny decoder"):
        sfumato.convert(source, out, tiny_decoder=source / "vae")
    folder = tiny_vae(tmp_path / "taesd", source)
    with pytest.raises(InvalidRequest, match="converted"):
        sfumato.convert(artifacts("sd"), out, tiny_decoder=folder)
    config = folder / "config.json"
    changed = json.loads(config.read_text()) | {"decoder_block_out_channels": "wide"}
    config.write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match=r"'wide' and .* must be a list"):
        sfumato.convert(source, out, tiny_decoder=folder)
    shutil.move(folder / "diffusion_pytorch_model.safetensors", folder / "diffusion_pytorch_model.bin")
    config.write_text(json.dumps(changed | {"decoder_block_out_channels": [16] * 4}))
    with pytest.raises(CheckpointError, match="never loaded"):
        sfumato.convert(source, out, tiny_decoder=folder)
    assert not out.exists()
