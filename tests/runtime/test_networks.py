"""Networks: compiled once for a shape, kept on disk, and clear about what is wrong."""

import ctypes
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

from sfumato.artifact import load_artifact
from sfumato.errors import ArtifactError, SfumatoError
from sfumato.files import hash_file
from sfumato.runtime import cache
from sfumato.runtime.devices import Device
from sfumato.runtime.networks import Network

F32 = Device(precision="f32")
PICTURE = {"sample": (1, 3, 64, 64)}


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


def test_cached_network_gives_the_same_bytes(folder, decoder):
    compiled = decoder()(latents(), PICTURE)["sample"]
    (blob,) = folder.iterdir()
    written = blob.stat().st_ino
    imported = decoder()(latents(), PICTURE)["sample"]
    assert imported.tobytes() == compiled.tobytes()
    assert [path.stat().st_ino for path in folder.iterdir()] == [written]


def test_cached_network_has_no_weights(folder, artifacts):
    artifact = load_artifact(artifacts("sd"))
    Network(artifact, "unet", F32).load(
        {"sample": (2, 4, 8, 8), "timestep": (2,), "encoder_hidden_states": (2, 16, 32)},
        {"out_sample": (2, 4, 8, 8)},
    )
    (blob,) = folder.iterdir()
    weights = (artifact.path / "unet" / "openvino_model.bin").stat().st_size
    graph = (artifact.path / "unet" / "openvino_model.xml").stat().st_size
    assert blob.stat().st_size < 2 * graph + weights / 2


@pytest.mark.parametrize("damage", [lambda blob: blob[:1000], lambda blob: b"x" + blob[1:], lambda blob: b""])
def test_damaged_cache_is_made_again(folder, decoder, damage):
    expected = decoder()(latents(), PICTURE)["sample"].tobytes()
    (blob,) = folder.iterdir()
    blob.write_bytes(damage(blob.read_bytes()))
    assert decoder()(latents(), PICTURE)["sample"].tobytes() == expected
    assert cache.read(blob.stem) is not None


def test_unwritable_cache_is_no_error(tmp_path, monkeypatch, decoder, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "file"))
    assert cache.cache_folder() == tmp_path / "file"
    with caplog.at_level(logging.INFO):
        assert decoder()(latents(), PICTURE)["sample"].shape == (1, 3, 64, 64)
    assert "not kept" in caplog.text


def test_each_shape_is_compiled_for(folder, decoder):
    network = decoder()
    for side in (8, 4, 8):
        picture = (1, 3, 8 * side, 8 * side)
        assert network(latents(side), {"sample": picture})["sample"].shape == picture
    assert len(list(folder.iterdir())) == 2


def test_outputs_are_not_overwritten_by_the_next_run(folder, decoder):
    network = decoder()
    first = network(latents(), PICTURE)["sample"]
    kept = first.copy()
    network({"latent_sample": np.zeros((1, 4, 8, 8), np.float32)}, PICTURE)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("damage", [lambda graph: graph[:2000], lambda graph: graph.replace(b"f32", b"f16")])
def test_damaged_graph_is_named(folder, artifacts, tmp_path, damage):
    shutil.copytree(artifacts("sd"), tmp_path / "copy")
    artifact = load_artifact(tmp_path / "copy")
    xml = tmp_path / "copy" / "vae_decoder" / "openvino_model.xml"
    xml.write_bytes(damage(xml.read_bytes()))
    with pytest.raises(ArtifactError, match=r"vae_decoder/openvino_model.xml: damaged") as caught:
        Network(artifact, "vae_decoder", F32)(latents(), PICTURE)
    assert "\n" not in str(caught.value)


def test_graph_that_openvino_cannot_read_is_named(folder, tmp_path):
    toy(tmp_path)
    (tmp_path / "toy" / "openvino_model.xml").write_text("<net/>")
    with pytest.raises(ArtifactError, match=r"toy/openvino_model.xml: damaged") as caught:
        toy_network(tmp_path).load({"x": (2, 4, 5)}, Y)
    assert "\n" not in str(caught.value)


def test_truncated_weights_are_named(folder, artifacts, tmp_path):
    shutil.copytree(artifacts("sd"), tmp_path / "copy")
    artifact = load_artifact(tmp_path / "copy")
    weights = tmp_path / "copy" / "vae_decoder" / "openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"vae_decoder/openvino_model.xml"):
        Network(artifact, "vae_decoder", F32)(latents(), PICTURE)


def toy(folder: Path, shape=(-1, 4, -1), out: str = "y") -> Network:
    """y = x + 3, in a folder whose manifest claims the same weights whatever they are."""
    x = ops.parameter(list(shape), np.float32, name="x")
    model = openvino.Model([ops.add(x, ops.constant(np.full((4, 1), 3, np.float32)))], [x])
    model.inputs[0].get_tensor().set_names({"x"})
    model.outputs[0].get_tensor().set_names({out} if out else set())
    (folder / "toy").mkdir(parents=True)
    openvino.save_model(model, folder / "toy" / "openvino_model.xml", compress_to_fp16=False)
    return toy_network(folder)


def toy_network(folder: Path) -> Network:
    graph = hash_file(folder / "toy" / "openvino_model.xml")
    hashes = {"toy/openvino_model.xml": graph, "toy/openvino_model.bin": "0" * 64}
    files = {name: SimpleNamespace(sha256=sha256) for name, sha256 in hashes.items()}
    return Network(SimpleNamespace(path=folder, manifest=SimpleNamespace(files=files)), "toy", F32)


X = {"x": np.full((2, 4, 5), 2, np.float32)}
Y = {"y": (2, 4, 5)}


@pytest.mark.parametrize(
    ("network", "inputs", "outputs", "message"),
    [
        ({}, {"pixels": (1, 3)}, Y, "has no input 'pixels'"),
        ({}, {}, Y, "needs an input 'x', which is not known here"),
        ({}, {"x": (2, 5, 5)}, Y, r"input 'x' is \[\?,4,\?\], but \[2, 5, 5\] fits the other parts"),
        ({}, {"x": (2, 4)}, Y, r"input 'x' is"),
        ({}, {"x": (2, 4, 5)}, {"sample": (2, 4, 5)}, "has no output 'sample'"),
        ({"out": ""}, {"x": (2, 4, 5)}, Y, "has no output 'y'"),
        ({}, {"x": (2, 4, 5)}, {"y": (2, 3, 5)}, r"output 'y' is \[2,4,5\], but \[2, 3, 5\]"),
        ({}, {"x": (2, 4, 5)}, {"y": (2, -1)}, "output 'y' is"),
    ],
)
def test_network_that_is_not_what_the_manifest_says(folder, tmp_path, network, inputs, outputs, message):
    with pytest.raises(ArtifactError, match=f"toy/openvino_model.xml: .*{message}") as caught:
        toy(tmp_path, **network).load(inputs, outputs)
    assert "\n" not in str(caught.value)


def test_any_length_fits_minus_one(folder, tmp_path):
    assert toy(tmp_path)(X, {"y": (2, -1, 5)})["y"].tolist() == np.full((2, 4, 5), 5).tolist()


def test_changed_weights_are_noticed(folder, tmp_path):
    assert toy(tmp_path)(X, Y)["y"][0, 0, 0] == 5
    (tmp_path / "new").write_bytes(np.full(4, 10, np.float32).tobytes())
    (tmp_path / "new").replace(tmp_path / "toy" / "openvino_model.bin")
    assert toy_network(tmp_path)(X, Y)["y"][0, 0, 0] == 12


def test_released_memory_goes_back_to_the_system(folder, tmp_path):
    """A network of 64 MB, whose compiled form has a copy of its own."""
    width, layers = 2048, 4
    x = ops.parameter([-1, width], np.float32, name="x")
    y = x
    for layer in range(layers):
        weights = np.random.default_rng(layer).standard_normal((width, width), np.float32)
        y = ops.matmul(y, ops.constant(weights), False, True)
    model = openvino.Model([y], [x])
    model.inputs[0].get_tensor().set_names({"x"})
    model.outputs[0].get_tensor().set_names({"y"})
    openvino.save_model(model, tmp_path / "toy" / "openvino_model.xml", compress_to_fp16=False)
    del model, x, y, weights
    network, inputs = toy_network(tmp_path), {"x": np.ones((1, width), np.float32)}
    ctypes.CDLL(None).malloc_trim(0)  # pages that earlier tests freed would be used again, and not counted
    before = own_bytes()
    expected = network(inputs, {"y": (1, width)})["y"]
    held = own_bytes() - before
    network.release()
    assert held > 60_000_000
    assert own_bytes() - before < held / 4
    np.testing.assert_array_equal(network(inputs, {"y": (1, width)})["y"], expected)


def own_bytes() -> int:
    """Resident memory without the pages of files, as of mapped weights."""
    resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("std::bad_alloc"), RuntimeError("Failed to allocate 9 bytes")]
)
def test_too_little_memory_is_said(folder, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    network = toy(tmp_path)
    monkeypatch.setattr(openvino.Core, "compile_model", fail)
    with pytest.raises(SfumatoError, match=r"toy: out of memory; choose a smaller size, or memory 'low'"):
        network.load({"x": (2, 4, 5)}, Y)
