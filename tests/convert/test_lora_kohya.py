"""kohya's LoRA files, in diffusers' and in the original names, against diffusers' loader and converters."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from safetensors.torch import save_file

from sfumato.convert.checkpoints import open_checkpoint
from sfumato.convert.lora import fuse_all, read_lora
from sfumato.convert.lora.original import unet_originals
from sfumato.convert.weights import load_module

Tensors = dict[str, torch.Tensor]
UNETS = {
    "sd15": {"cross_attention_dim": 768},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "vega": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
    },
}


def random(*shape: int, seed: int) -> torch.Tensor:
    return 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def modules(module: torch.nn.Module) -> dict[str, torch.Size]:
    """Shapes of the weights of every linear layer and convolution, by path."""
    kinds = torch.nn.Linear | torch.nn.Conv2d
    return {path: m.weight.shape for path, m in module.named_modules() if isinstance(m, kinds)}


def kohya(prefix: str, shapes: dict[str, torch.Size]) -> Tensors:
    """Random layers of rank 3 under kohya's names.

    They share an alpha: diffusers 0.42.1 loses those of attention layers where layers differ.
    """
    tensors: Tensors = {}
    for i, (path, shape) in enumerate(shapes.items()):
        name = f"{prefix}_{path.replace('.', '_')}"
        ones = (1,) * (len(shape) - 2)
        tensors[f"{name}.lora_down.weight"] = random(3, *shape[1:], seed=2 * i)
        tensors[f"{name}.lora_up.weight"] = random(shape[0], 3, *ones, seed=2 * i + 1)
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    return tensors


def fused(folder: Path, part: str, file: Path, scale: float = 1.0) -> Tensors:
    checkpoint = open_checkpoint(folder)
    module = load_module(checkpoint.parts[part])
    fuse_all([read_lora(file, scale, checkpoint)], part, module)
    return module.state_dict()


def changes(folder: Path, part: str, file: Path) -> Tensors:
    plain = load_module(open_checkpoint(folder).parts[part]).state_dict()
    after = fused(folder, part, file)
    return {name: after[name] - plain[name] for name in plain if not torch.equal(after[name], plain[name])}


def assert_same(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=1e-6, msg=name)


def original_unet(unet: torch.nn.Module) -> dict[str, torch.Size]:
    shapes = modules(unet)
    return {name: shapes[path] for path, name in unet_originals(shapes).items()}


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_sd_with_diffusers_names_equals_fuse_lora(scale, checkpoints, tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained(checkpoints("sd"))
    text = {
        f"text_model.{path.removeprefix('text_model.')}": shape
        for path, shape in modules(pipe.text_encoder).items()
    }
    file = tmp_path / "kohya.safetensors"
    save_file(kohya("lora_unet", modules(pipe.unet)) | kohya("lora_te", text), file)
    pipe.load_lora_weights(file)
    pipe.fuse_lora(lora_scale=scale)
    pipe.unload_lora_weights()
    for part in ("unet", "text_encoder"):
        assert_same(fused(checkpoints("sd"), part, file, scale), getattr(pipe, part).state_dict())
        assert len(changes(checkpoints("sd"), part, file)) == len(modules(getattr(pipe, part)))


def test_sdxl_with_original_names_equals_fuse_lora(checkpoints, tmp_path):
    pipe = StableDiffusionXLPipeline.from_pretrained(checkpoints("sdxl"))
    # diffusers 0.42.1 takes an upsampler without attention beside it for an attention.
    layers = {
        name: shape for name, shape in original_unet(pipe.unet).items() if name != "output_blocks.1.1.conv"
    }
    assert "middle_block.1.transformer_blocks.0.attn2.to_k" in layers
    tensors = kohya("lora_unet", layers)
    for prefix, encoder in (("lora_te1", pipe.text_encoder), ("lora_te2", pipe.text_encoder_2)):
        clip = {p: shape for p, shape in modules(encoder).items() if p != "text_projection"}
        clip = {f"text_model.{path.removeprefix('text_model.')}": shape for path, shape in clip.items()}
        tensors |= kohya(prefix, clip)
    file = tmp_path / "kohya.safetensors"
    save_file(tensors, file)
    pipe.load_lora_weights(file)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    for part in ("unet", "text_encoder", "text_encoder_2"):
        assert_same(fused(checkpoints("sdxl"), part, file), getattr(pipe, part).state_dict())


@pytest.mark.parametrize("name", UNETS)
def test_original_names_are_those_that_diffusers_converts(name):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[name])
    shapes = modules(unet)
    originals = unet_originals(shapes)
    stored: Tensors = {}
    for i, (path, original) in enumerate(originals.items()):
        for leaf in ("weight", "bias"):
            stored[f"model.diffusion_model.{original}.{leaf}"] = torch.tensor(i)
        assert path in shapes
    for key in ("out.0.weight", "out.0.bias"):
        stored[f"model.diffusion_model.{key}"] = torch.tensor(-1)
    config = {"layers_per_block": 2, "addition_embed_type": UNETS[name].get("addition_embed_type")}
    converted = convert_ldm_unet_checkpoint(stored, config)
    assert originals.keys() == shapes.keys()
    assert {path: int(converted[f"{path}.weight"]) for path in shapes} == {
        path: i for i, path in enumerate(originals)
    }


def test_upsamplers_stand_behind_attentions_where_there_are_any():
    found = {}
    for name in ("sd15", "sdxl"):
        with torch.device("meta"):
            found[name] = unet_originals(modules(UNet2DConditionModel(**UNETS[name])))
    assert found["sd15"]["up_blocks.0.upsamplers.0.conv"] == "output_blocks.2.1.conv"
    assert found["sd15"]["up_blocks.1.upsamplers.0.conv"] == "output_blocks.5.2.conv"
    assert found["sdxl"]["up_blocks.0.upsamplers.0.conv"] == "output_blocks.2.2.conv"


class Zeros(dict):
    """A state dict in SD3's original layout that has zeros wherever nothing is stored."""

    def pop(self, key: str, *default: object) -> torch.Tensor:
        return super().pop(key) if key in self else torch.zeros(6, 1)


@pytest.mark.parametrize(("name", "attentions"), [("sd3", ("attn",)), ("sd35", ("attn", "attn2"))])
@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
def test_sd3_with_original_names_equals_diffusers_conversion(name, attentions, prefix, checkpoints, tmp_path):
    block = {f"x_block.{attn}.qkv": (192, 64) for attn in attentions}
    block |= {f"x_block.{attn}.proj": (64, 64) for attn in attentions}
    block |= {"x_block.mlp.fc1": (256, 64), "x_block.mlp.fc2": (64, 256), "context_block.attn.qkv": (192, 64)}
    layers = {f"joint_blocks.0.{path}": shape for path, shape in block.items()}
    layers |= {
        "joint_blocks.0.context_block.attn.proj": (64, 64),
        "joint_blocks.0.context_block.mlp.fc2": (64, 256),
        "joint_blocks.0.context_block.adaLN_modulation.1": (6 * 64, 64),
        "joint_blocks.0.x_block.adaLN_modulation.1": ((6 if name == "sd3" else 9) * 64, 64),
        "joint_blocks.1.x_block.attn.qkv": (192, 64),
        "joint_blocks.1.context_block.adaLN_modulation.1": (2 * 64, 64),
        "context_embedder": (64, 96),
        "x_embedder.proj": (64, 16, 2, 2),
        "t_embedder.mlp.0": (64, 256),
        "y_embedder.mlp.2": (64, 64),
        "final_layer.linear": (64, 64),
        "final_layer.adaLN_modulation.1": (128, 64),
    }
    tensors: Tensors = {}
    stored = Zeros()
    for i, (path, shape) in enumerate(layers.items()):
        key = prefix + (path.replace(".", "_") if prefix.endswith("_") else path)
        ones = (1,) * (len(shape) - 2)
        down, up = random(3, *shape[1:], seed=2 * i), random(shape[0], 3, *ones, seed=2 * i + 1)
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        tensors[f"{key}.alpha"] = torch.tensor(6.0)
        stored[f"{path}.weight"] = 2.0 * (up.flatten(1) @ down.flatten(1)).reshape(shape)
    file = tmp_path / "sd3.safetensors"
    save_file(tensors, file)
    converted = convert_sd3_transformer_checkpoint_to_diffusers(stored)
    theirs = {key: value for key, value in converted.items() if value.any()}
    ours = changes(checkpoints(name), "transformer", file)
    assert ours.keys() == theirs.keys()
    for key, change in theirs.items():
        torch.testing.assert_close(ours[key], change, rtol=1e-4, atol=1e-5, msg=key)


def test_sd3_with_diffusers_names_and_all_encoders(checkpoints, tmp_path):
    folder = checkpoints("sd3")
    transformer = modules(SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer"))
    tensors = kohya("lora_transformer", transformer)
    counts = {"transformer": len(transformer)}
    for i, part in enumerate(("text_encoder", "text_encoder_2", "text_encoder_3")):
        shapes = modules(load_module(open_checkpoint(folder).parts[part]))
        tensors |= kohya(f"lora_te{i + 1}", shapes)
        counts[part] = len(shapes)
    file = tmp_path / "all.safetensors"
    save_file(tensors, file)
    layers = read_lora(file, 1.0, open_checkpoint(folder)).layers
    assert {part: len(found) for part, found in layers.items()} == counts
    weight = "encoder.block.1.layer.0.SelfAttention.q"
    key = f"lora_te3_{weight.replace('.', '_')}"
    down, up, alpha = (tensors[f"{key}.{each}"] for each in ("lora_down.weight", "lora_up.weight", "alpha"))
    change = changes(folder, "text_encoder_3", file)[f"{weight}.weight"]
    torch.testing.assert_close(change, alpha / 3 * up @ down, rtol=1e-4, atol=1e-5)


def test_tucker_decomposition_is_three_convolutions(checkpoints, tmp_path):
    name = "lora_unet_mid_block_resnets_0_conv1"
    down, mid, up = random(4, 32, 1, 1, seed=0), random(4, 4, 3, 3, seed=1), random(32, 4, 1, 1, seed=2)
    roles = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}
    file = tmp_path / "locon.safetensors"
    tensors = {f"{name}.{role}": tensor for role, tensor in roles.items()}
    save_file(tensors | {f"{name}.alpha": torch.tensor(2.0)}, file)
    ours = changes(checkpoints("sd"), "unet", file)
    assert list(ours) == ["mid_block.resnets.0.conv1.weight"]
    x = random(1, 32, 6, 6, seed=3)
    conv = torch.nn.functional.conv2d
    theirs = 0.5 * conv(conv(conv(x, down), mid, padding=1), up)
    torch.testing.assert_close(conv(x, *ours.values(), padding=1), theirs, rtol=1e-4, atol=1e-5)


def test_layers_of_old_attention_processors(checkpoints, tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained(checkpoints("sd"))
    shapes = modules(pipe.unet)
    block = "mid_block.attentions.0.transformer_blocks.0.attn2"
    tensors: Tensors = {}
    for i, (old, path) in enumerate({"to_k": "to_k", "to_out": "to_out.0"}.items()):
        outputs, inputs = shapes[f"{block}.{path}"]
        tensors[f"unet.{block}.processor.{old}_lora.down.weight"] = random(2, inputs, seed=i)
        tensors[f"unet.{block}.processor.{old}_lora.up.weight"] = random(outputs, 2, seed=i + 9)
    text = "text_encoder.text_model.encoder.layers.1.self_attn"
    for i, old in enumerate(("to_q", "to_out")):
        tensors[f"{text}.{old}_lora.down.weight"] = random(2, 32, seed=i + 5)
        tensors[f"{text}.{old}_lora.up.weight"] = random(32, 2, seed=i + 7)
    file = tmp_path / "old.safetensors"
    save_file(tensors, file)
    pipe.load_lora_weights(file)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    for part in ("unet", "text_encoder"):
        assert_same(fused(checkpoints("sd"), part, file), getattr(pipe, part).state_dict())
        assert changes(checkpoints("sd"), part, file)
