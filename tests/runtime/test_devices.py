"""Networks: compiled once for a shape, kept on disk, and clear about what is wrong."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from sfumato.artifact import load_artifact
from sfumato.errors import ArtifactError, InvalidRequest
from sfumato.runtime.devices import Device, Network, cache_folder

F32 = Device(precision="f32")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty cache of compiled networks."""
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def decoder(artifacts):
    artifact = load_artifact(artifacts("sd"))
    return lambda device=F32: Network(artifact, "vae_decoder", device)


def latents(side: int = 8) -> dict[str, np.ndarray]:
    return {"latent_sample": np.random.default_rng(0).standard_normal((1, 4, side, side)).astype(np.float32)}


def test_unknown_device_names_the_available_ones():
    with pytest.raises(InvalidRequest, match=r"device 'TPU': not found here; available are .*CPU"):
        Device("TPU")


@pytest.mark.parametrize("options", [{"precision": "int3"}, {"threads": 0}])
def test_unusable_options(options):
    with pytest.raises(InvalidRequest):
        Device(**options)


def test_cached_network_gives_the_same_bytes(folder, decoder):
    compiled = decoder()(latents())[0]
    (blob,) = folder.iterdir()
    written = blob.stat().st_mtime_ns
    imported = decoder()(latents())[0]
    assert imported.tobytes() == compiled.tobytes()
    assert [path.stat().st_mtime_ns for path in folder.iterdir()] == [written]


def test_cached_network_has_no_weights(folder, artifacts):
    artifact = load_artifact(artifacts("sd"))
    Network(artifact, "unet", F32).load(
        {"sample": (2, 4, 8, 8), "timestep": (2,), "encoder_hidden_states": (2, 16, 32)}
    )
    (blob,) = folder.iterdir()
    weights = (artifact.path / "unet" / "openvino_model.bin").stat().st_size
    graph = (artifact.path / "unet" / "openvino_model.xml").stat().st_size
    assert blob.stat().st_size < 2 * graph + weights / 2


@pytest.mark.parametrize("damage", [lambda blob: blob[:1000], lambda blob: b"x" + blob[1:], lambda blob: b""])
def test_damaged_cache_is_made_again(folder, decoder, damage):
    expected = decoder()(latents())[0].tobytes()
    (blob,) = folder.iterdir()
    whole = blob.read_bytes()
    blob.write_bytes(damage(whole))
    assert decoder()(latents())[0].tobytes() == expected
    assert len(blob.read_bytes()) == len(whole)


def test_unwritable_cache_is_no_error(tmp_path, monkeypatch, decoder, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "file"))
    assert cache_folder() == tmp_path / "file"
    with caplog.at_level(logging.INFO):
        assert decoder()(latents())[0].shape == (1, 3, 64, 64)
    assert "not kept" in caplog.text


def test_each_shape_is_compiled_for(folder, decoder):
    network = decoder()
    assert network(latents(8))[0].shape == (1, 3, 64, 64)
    assert network(latents(4))[0].shape == (1, 3, 32, 32)
    assert network(latents(8))[0].shape == (1, 3, 64, 64)
    assert len(list(folder.iterdir())) == 2


def test_outputs_are_not_overwritten_by_the_next_run(folder, decoder):
    network = decoder()
    first = network(latents())[0]
    kept = first.copy()
    network({"latent_sample": np.zeros((1, 4, 8, 8), np.float32)})
    np.testing.assert_array_equal(first, kept)


def test_damaged_graph_is_named(folder, artifacts, tmp_path):
    shutil.copytree(artifacts("sd"), tmp_path / "copy")
    artifact = load_artifact(tmp_path / "copy")
    xml = tmp_path / "copy" / "vae_decoder" / "openvino_model.xml"
    xml.write_bytes(xml.read_bytes()[:2000])
    with pytest.raises(ArtifactError, match=r"vae_decoder/openvino_model.xml: damaged") as caught:
        Network(artifact, "vae_decoder", F32)(latents())
    assert "\n" not in str(caught.value)


def test_truncated_weights_are_named(folder, artifacts, tmp_path):
    shutil.copytree(artifacts("sd"), tmp_path / "copy")
    artifact = load_artifact(tmp_path / "copy")
    weights = tmp_path / "copy" / "vae_decoder" / "openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"vae_decoder/openvino_model.xml"):
        Network(artifact, "vae_decoder", F32)(latents())


def test_inputs_the_network_does_not_have_are_named(folder, decoder):
    with pytest.raises(InvalidRequest, match=r"vae_decoder cannot run with pixels \[1, 3\]"):
        decoder().load({"pixels": (1, 3)})
