"""Another autoencoder in the place of a diffusers folder's own."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL

import sfumato
from sfumato.artifact import load_artifact
from sfumato.cli import main
from sfumato.errors import CheckpointError, InvalidRequest


@pytest.fixture
def other(checkpoints, tmp_path):
    """A folder like the vae of the tiny SD checkpoint, with weights and a scale of its own."""
    torch.manual_seed(1)
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(checkpoints("sd") / "vae"), scaling_factor=0.5)
    vae.save_pretrained(tmp_path / "other")
    return tmp_path / "other"


@pytest.fixture
def bare(checkpoints, tmp_path):
    """The tiny SD checkpoint without an autoencoder."""
    folder = shutil.copytree(checkpoints("sd"), tmp_path / "bare")
    shutil.rmtree(folder / "vae")
    index = json.loads((folder / "model_index.json").read_text())
    del index["vae"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def weights(folder):
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/openvino_model.bin")}


def test_takes_the_place_of_the_own(checkpoints, other, tmp_path):
    exchanged = shutil.copytree(checkpoints("sd"), tmp_path / "exchanged")
    shutil.rmtree(exchanged / "vae")
    shutil.copytree(other, exchanged / "vae")
    given = sfumato.convert(checkpoints("sd"), tmp_path / "given", vae=other).manifest
    expected = sfumato.convert(exchanged, tmp_path / "expected").manifest
    assert weights(tmp_path / "given") == weights(tmp_path / "expected")
    assert given.latents == expected.latents
    assert given.latents.scale == 0.5
    assert any(file.endswith("other/diffusion_pytorch_model.safetensors") for file in given.source)


def test_serves_a_folder_without_one(checkpoints, bare, tmp_path):
    with pytest.raises(CheckpointError, match="component 'vae' is missing"):
        sfumato.convert(bare, tmp_path / "out")
    out = tmp_path / "out"
    assert main(["convert", str(bare), str(out), "--vae", str(checkpoints("sd") / "vae"), "-q"]) == 0
    expected = sfumato.convert(checkpoints("sd"), tmp_path / "expected")
    assert weights(out) == weights(expected.path)
    assert load_artifact(out).manifest.latents == expected.manifest.latents
    assert json.loads((out / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]
    sfumato.Pipeline.load(out, threads=1)("a red apple", steps=2, seed=0)


def test_refusals(checkpoints, artifacts, bare, other, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match=r"latents have 16 channels, and the checkpoint needs 4"):
        sfumato.convert(checkpoints("sd"), out, vae=checkpoints("sd3") / "vae")
    with pytest.raises(CheckpointError, match="no such file"):
        sfumato.convert(checkpoints("sd"), out, vae=tmp_path / "nowhere.safetensors")
    with pytest.raises(CheckpointError, match="neither a safetensors file nor a diffusers folder's vae"):
        sfumato.convert(checkpoints("sd"), out, vae=tmp_path)
    file = other / "diffusion_pytorch_model.safetensors"
    with pytest.raises(CheckpointError, match="does not say the scale of its latents"):
        sfumato.convert(bare, out, vae=file)
    with pytest.raises(InvalidRequest, match="converted model already"):
        sfumato.convert(artifacts("sd"), out, vae=other)
    assert not out.exists()
    assert sfumato.convert(checkpoints("sd"), out, vae=file).manifest.latents.scale != 0.5
