"""LoRA files fused as diffusers and PEFT fuse them, and refused where they don't belong."""

import json
import shutil
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusionPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from sfumato.convert.checkpoints import open_checkpoint
from sfumato.convert.lora import fuse_all, read_lora
from sfumato.convert.weights import load_module
from sfumato.errors import CheckpointError

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
FLASH = ["proj", "linear", "linear_1", "linear_2", *ATTENTION, "ff.net.0.proj", "ff.net.2"]


def randomize(module: torch.nn.Module) -> None:
    """Fill LoRA weights, half of which start at zero."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in module.named_parameters():
        if "lora_" in name:
            weight.data = 0.2 * torch.randn(weight.shape, generator=generator)


def fused_state(folder: Path, part: str, file: Path, scale: float) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(folder)
    module = load_module(checkpoint.parts[part])
    fuse_all([read_lora(file, scale, checkpoint)], part, module)
    return module.state_dict()


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def flash_lora(checkpoints, tmp_path_factory) -> Path:
    """A PEFT LoRA with Flash-SD3's targets, among them the patch embedding and adaLN linears."""
    folder = tmp_path_factory.mktemp("flash")
    transformer = SD3Transformer2DModel.from_pretrained(checkpoints("sd3"), subfolder="transformer")
    model = get_peft_model(transformer, LoraConfig(r=4, lora_alpha=2, target_modules=FLASH))
    randomize(model)
    model.save_pretrained(folder)
    return folder / "adapter_model.safetensors"


@pytest.fixture(scope="module")
def unet_lora(checkpoints, tmp_path_factory) -> Path:
    """A LoRA as diffusers saves it, on the UNet and the text encoder."""
    pipe = StableDiffusionPipeline.from_pretrained(checkpoints("sd"))
    pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=[*ATTENTION, "conv1", "proj_in"]))
    pipe.text_encoder.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"]))
    folder = tmp_path_factory.mktemp("unet")
    for module in (pipe.unet, pipe.text_encoder):
        randomize(module)
    layers = [get_peft_model_state_dict(module) for module in (pipe.unet, pipe.text_encoder)]
    metadata = [m.peft_config["default"].to_dict() for m in (pipe.unet, pipe.text_encoder)]
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=layers[0],
        text_encoder_lora_layers=layers[1],
        unet_lora_adapter_metadata=metadata[0],
        text_encoder_lora_adapter_metadata=metadata[1],
    )
    return folder / "pytorch_lora_weights.safetensors"


def test_peft_lora_equals_merge_and_unload(checkpoints, flash_lora):
    transformer = SD3Transformer2DModel.from_pretrained(checkpoints("sd3"), subfolder="transformer")
    before = {name: weight.clone() for name, weight in transformer.state_dict().items()}
    theirs = PeftModel.from_pretrained(transformer, flash_lora.parent).merge_and_unload().state_dict()
    assert not torch.equal(before["pos_embed.proj.weight"], theirs["pos_embed.proj.weight"])
    assert_same(fused_state(checkpoints("sd3"), "transformer", flash_lora, 1.0), theirs)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_diffusers_lora_equals_fuse_lora(scale, checkpoints, unet_lora):
    pipe = StableDiffusionPipeline.from_pretrained(checkpoints("sd"))
    pipe.load_lora_weights(unet_lora)
    pipe.fuse_lora(lora_scale=scale)
    pipe.unload_lora_weights()
    for part in ("unet", "text_encoder"):
        assert_same(fused_state(checkpoints("sd"), part, unet_lora, scale), getattr(pipe, part).state_dict())


def test_alpha_tensors_and_old_names(checkpoints, tmp_path):
    generator = torch.Generator().manual_seed(1)
    name = "unet.mid_block.resnets.0.conv1"
    down, up = (torch.randn(shape, generator=generator) for shape in ((4, 32, 3, 3), (32, 4, 1, 1)))
    file = tmp_path / "old.safetensors"
    tensors = {
        f"{name}.lora.down.weight": down,
        f"{name}.lora.up.weight": up,
        f"{name}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, file)
    plain = load_module(open_checkpoint(checkpoints("sd")).parts["unet"]).state_dict()
    fused = fused_state(checkpoints("sd"), "unet", file, 3.0)
    key = "mid_block.resnets.0.conv1.weight"
    change = 3.0 * 2.0 / 4 * torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)
    torch.testing.assert_close(fused[key], plain[key] + change, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(fused[other], plain[other]) for other in plain if other != key)


def test_sixteen_bit_weights_stay_so(checkpoints, flash_lora):
    checkpoint = open_checkpoint(checkpoints("sd3"))
    module = load_module(checkpoint.parts["transformer"]).half()
    fuse_all([read_lora(flash_lora, 1.0, checkpoint)], "transformer", module)
    assert {weight.dtype for weight in module.parameters()} == {torch.float16}


def test_a_converted_lora_changes_the_picture_as_diffusers_says(checkpoints, flash_lora, tmp_path):
    from sfumato import convert

    artifact = convert(checkpoints("sd3"), tmp_path / "flash", precision="fp32", loras=[(flash_lora, 1.0)])
    assert [(lora.file, lora.scale) for lora in artifact.manifest.loras] == [
        ("adapter_model.safetensors", 1.0)
    ]
    transformer = SD3Transformer2DModel.from_pretrained(checkpoints("sd3"), subfolder="transformer")
    transformer = PeftModel.from_pretrained(transformer, flash_lora.parent).merge_and_unload().eval()
    rng = np.random.default_rng(0)
    inputs = {
        "hidden_states": rng.standard_normal((2, 16, 8, 10), np.float32),
        "encoder_hidden_states": rng.standard_normal((2, 40, 96), np.float32),
        "pooled_projections": rng.standard_normal((2, 80), np.float32),
        "timestep": np.array([857.69, 857.69], np.float32),
    }
    compiled = ov.Core().compile_model(
        artifact.path / "transformer/openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    with torch.no_grad():
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        theirs = transformer(**tensors, return_dict=False)[0].numpy()
    np.testing.assert_allclose(compiled(inputs)["out_sample"], theirs, atol=1e-4)


def refused(folder: Path, file: Path, scale: float = 1.0) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_lora(file, scale, open_checkpoint(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert str(file) in message
    return message


def test_other_familys_lora_is_named(checkpoints, flash_lora, unet_lora):
    assert "made for sd3, this checkpoint is sd" in refused(checkpoints("sd"), flash_lora)
    assert "made for a UNet (sd or sdxl), this checkpoint is sd3" in refused(checkpoints("sd3"), unet_lora)


def test_other_models_lora_is_named(checkpoints, unet_lora):
    message = refused(checkpoints("sdxl"), unet_lora)
    assert "attn2" in message
    assert "made for another model" in message


def test_unmatched_layers_are_named(checkpoints, flash_lora, tmp_path):
    tensors = load_file(flash_lora)
    pair = {key: tensors.pop(key) for key in list(tensors) if "transformer_blocks.0.attn.to_q" in key}
    tensors |= {key.replace("blocks.0", "blocks.7"): value for key, value in pair.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    shutil.copy(flash_lora.parent / "adapter_config.json", tmp_path)
    message = refused(checkpoints("sd3"), tmp_path / "adapter_model.safetensors")
    assert "transformer_blocks.7.attn.to_q" in message


def test_peft_needs_its_configuration(checkpoints, flash_lora, tmp_path):
    file = Path(shutil.copy(flash_lora, tmp_path))
    assert "adapter_config.json" in refused(checkpoints("sd3"), file)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"use_dora": True}))
    with pytest.raises(CheckpointError, match="DoRA"):
        read_lora(file, 1.0, open_checkpoint(checkpoints("sd3")))


def test_what_is_no_lora(checkpoints, tmp_path):
    save_file({"something.weight": torch.ones(1)}, tmp_path / "a.safetensors")
    assert "something.weight" in refused(checkpoints("sd"), tmp_path / "a.safetensors")
    assert "pickle" in refused(checkpoints("sd"), tmp_path / "lora.bin")
    (tmp_path / "b.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    assert "cannot be read" in refused(checkpoints("sd"), tmp_path / "b.safetensors")
    assert "no such" in refused(checkpoints("sd"), tmp_path / "missing.safetensors")
    assert "nan" in refused(checkpoints("sd"), tmp_path / "a.safetensors", float("nan"))
