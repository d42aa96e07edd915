"""Checkpoints that cannot be used: each refused in one line that says what is wrong and what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from sfumato.convert.checkpoints import open_checkpoint
from sfumato.convert.tokenizers import load_tokenizer
from sfumato.convert.weights import load_module
from sfumato.errors import CheckpointError

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(checkpoints, tmp_path) -> Callable[[str], Path]:
    """A checkpoint of one's own to damage."""
    return lambda name: shutil.copytree(checkpoints(name), tmp_path / name)


def refused(folder: Path, **options: bool) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("name", tiny.NAMES)
def test_families_are_recognised(name, checkpoints):
    checkpoint = open_checkpoint(checkpoints(name))
    assert checkpoint.family.name == {"sd-v": "sd", "sd35": "sd3", "sd3-no-t5": "sd3"}.get(name, name)
    names = [component.name for component in checkpoint.components]
    assert ("text_encoder_3" in names) == (name in ("sd3", "sd35"))
    assert {"vae_encoder", "vae_decoder", checkpoint.family.denoiser} <= set(names)


def test_t5_can_be_left_out(checkpoints):
    checkpoint = open_checkpoint(checkpoints("sd3"), without_t5=True)
    assert "text_encoder_3" not in checkpoint.parts
    assert "tokenizer_3" not in checkpoint.tokenizers


def test_folders_that_are_none(tmp_path, copy):
    assert "model_index.json: missing" in refused(tmp_path)
    folder = copy("sd")
    (folder / "model_index.json").write_text("{ nonsense")
    assert "not readable as JSON" in refused(folder)
    (folder / "model_index.json").write_text("[]")
    assert "object is expected" in refused(folder)


def test_unknown_classes(copy):
    folder = copy("sd")
    tiny.set_index(folder, _class_name="KandinskyPipeline")
    message = refused(folder)
    assert "KandinskyPipeline" in message
    assert "StableDiffusion3Pipeline" in message
    tiny.set_index(folder, _class_name="StableDiffusionPipeline", unet=["diffusers", "UNet3DConditionModel"])
    assert "UNet3DConditionModel" in refused(folder)
    tiny.set_index(folder, unet=["diffusers", "UNet2DConditionModel"])
    edit(folder / "unet/config.json", _class_name="Evil")
    assert "'Evil'" in refused(folder)
    tiny.set_index(folder, unet="nothing")
    assert "[library, class]" in refused(folder)
    tiny.set_index(
        folder, unet=["diffusers", "UNet2DConditionModel"], tokenizer=["transformers", "BertTokenizer"]
    )
    edit(folder / "unet/config.json", _class_name="UNet2DConditionModel")
    assert "BertTokenizer" in refused(folder)


@pytest.mark.parametrize(
    "file", ["unet/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json"]
)
def test_code_in_a_checkpoint_is_never_run(file, copy):
    folder = copy("sd")
    edit(folder / file, auto_map={"AutoModel": "evil.Model"})
    (folder / file).with_name("evil.py").write_text("raise SystemExit('ran')")
    message = refused(folder)
    assert "auto_map" in message
    assert "never run" in message


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".pth"])
def test_pickles_are_refused_with_the_way_out(suffix, copy):
    folder = copy("sd")
    (folder / UNET).rename((folder / UNET).with_suffix(suffix))
    message = refused(folder)
    assert f"diffusion_pytorch_model{suffix}" in message
    assert "never loaded" in message
    assert "save_pretrained" in message


def test_missing_parts(copy):
    folder = copy("sd")
    (folder / UNET).unlink()
    assert "no weights found" in refused(folder)
    shutil.rmtree(folder / "unet")
    assert "component 'unet' is missing" in refused(folder)
    tiny.set_index(folder, unet=[None, None])
    assert "'unet' is missing from model_index.json" in refused(folder)


def test_truncated_weights(copy):
    folder = copy("sd")
    data = (folder / UNET).read_bytes()
    for length in (len(data) - 1, len(data) // 2, 4, 0):
        (folder / UNET).write_bytes(data[:length])
        assert "cut short or damaged" in refused(folder)


def shard(folder: Path) -> Path:
    """Split the UNet's weights into two files with an index; returns the index."""
    tensors = load_file(folder / UNET)
    (folder / UNET).unlink()
    names = sorted(tensors)
    halves = {f"diffusion_pytorch_model-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for file, keys in halves.items():
        save_file({key: tensors[key] for key in keys}, folder / "unet" / file, metadata={"format": "pt"})
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    weight_map = {key: file for file, keys in halves.items() for key in keys}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_sharded_weights_load(copy, checkpoints):
    folder = copy("sd")
    shard(folder)
    sharded = load_module(open_checkpoint(folder).parts["unet"]).state_dict()
    whole = load_module(open_checkpoint(checkpoints("sd")).parts["unet"]).state_dict()
    assert all(torch.equal(sharded[key], value) for key, value in whole.items())


def test_missing_or_foreign_shards(copy, tmp_path):
    folder = copy("sd")
    index = shard(folder)
    second = folder / "unet/diffusion_pytorch_model-00002-of-00002.safetensors"
    second.rename(tmp_path / second.name)
    message = refused(folder)
    assert second.name in message
    assert "missing" in message
    weight_map = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map=dict.fromkeys(weight_map, f"../../{second.name}"))
    assert "leads out of the checkpoint" in refused(folder)
    edit(index, weight_map=dict.fromkeys(weight_map, "weights.bin"))
    assert "no safetensors" in refused(folder)


def test_variant_names(copy):
    folder = copy("sd")
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    (folder / "text_encoder/model.safetensors").rename(folder / "text_encoder/model.fp16.safetensors")
    checkpoint = open_checkpoint(folder)
    for part in ("unet", "text_encoder"):
        assert all(".fp16." in file.name for file in checkpoint.parts[part].files)
        load_module(checkpoint.parts[part])


def test_links_out_of_the_folder(copy, tmp_path):
    folder = copy("sd")
    outside = tmp_path / "outside.safetensors"
    (folder / UNET).rename(outside)
    (folder / UNET).symlink_to(outside)
    message = refused(folder)
    assert UNET in message
    assert "leads out of the checkpoint" in message


def test_the_hubs_cache_may_link_to_its_blobs(checkpoints, tmp_path):
    snapshot = shutil.copytree(checkpoints("sd"), tmp_path / "models--a--b/snapshots/123")
    blob = tmp_path / "models--a--b/blobs/abc"
    blob.parent.mkdir()
    (snapshot / UNET).rename(blob)
    (snapshot / UNET).symlink_to("../../../blobs/abc")
    assert open_checkpoint(snapshot).parts["unet"].files == [snapshot / UNET]


@pytest.mark.parametrize(
    ("part", "file", "key"),
    [
        ("unet", UNET, "conv_in.weight"),
        ("text_encoder", "text_encoder/model.safetensors", "final_layer_norm.weight"),
        ("vae", "vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.weight"),
    ],
)
def test_every_weight_finds_its_place(part, file, key, copy):
    folder = copy("sd")
    tensors = load_file(folder / file)
    key = next(name for name in tensors if name.endswith(key))

    def complaint(**changed: torch.Tensor) -> str:
        kept = {name: value for name, value in (tensors | changed).items() if value is not None}
        save_file(kept, folder / file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError) as caught:
            load_module(open_checkpoint(folder).parts[part])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert key.rpartition("text_model.")[2] in complaint(**{key: None})
    assert "stranger.weight" in complaint(**{"stranger.weight": torch.ones(1)})
    assert str(folder / part) in complaint(**{key: torch.ones(3, 3)})


def test_damaged_tokenizer(copy):
    folder = copy("sd")
    for path in (folder / "tokenizer").iterdir():
        path.write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_tokenizer(folder / "tokenizer", "CLIPTokenizer")
