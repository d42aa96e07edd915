"""LoRA files that cannot be fused: refused in one sentence that names what is wrong."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sfumato.convert.checkpoints import open_checkpoint
from sfumato.convert.lora import read_lora
from sfumato.errors import CheckpointError

Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
Tensors = dict[str, torch.Tensor]


def layer(name: str, outputs: int, inputs: int, style: str = "lora_down lora_up", rank: int = 2) -> Tensors:
    down, up = style.split()
    return {
        f"{name}.{down}.weight": torch.ones(rank, inputs),
        f"{name}.{up}.weight": torch.ones(outputs, rank),
    }


@pytest.fixture
def refused(checkpoints, tmp_path):
    """`refused(tensors, metadata, name)`: the one sentence that says why, for the checkpoint `name`."""

    def write(tensors: Tensors, metadata: dict[str, str] | None = None, name: str = "sd") -> str:
        file = tmp_path / "lora.safetensors"
        save_file(tensors, file, metadata)
        with pytest.raises(CheckpointError) as caught:
            read_lora(file, 1.0, open_checkpoint(checkpoints(name)))
        message = str(caught.value)
        assert message.startswith(f"{file}: ")
        assert "\n" not in message
        return message

    return write


@pytest.mark.parametrize(
    ("kind", "leaf"),
    [
        ("LoHa", "hada_w1_a"),
        ("LoKr", "lokr_w1"),
        ("DoRA", "dora_scale"),
        ("DoRA", "lora_magnitude_vector.weight"),
        ("OFT", "oft_blocks"),
        ("BOFT", "boft_R"),
        ("GLoRA", "a1.weight"),
        ("(IA)^3", "on_input"),
        ("VeRA", "vera_lambda_b"),
        ("full-rank difference", "diff"),
        ("full-rank difference", "w_norm"),
        ("embedding LoRA", "lora_embedding_A"),
    ],
)
def test_other_adapters_are_called_by_their_name(kind, leaf, refused):
    message = refused({**layer(K, 32, 32), f"{K}.{leaf}": torch.ones(2)})
    assert f"holds {kind} weights ({K}.{leaf})" in message


def test_textual_inversion_in_the_file(refused):
    tensors = {**layer(K, 16, 32), "bundle_emb.word.string_to_param.*": torch.ones(2)}
    assert "textual inversion" in refused(tensors)


@pytest.mark.parametrize(
    ("checkpoint", "name", "inputs", "made_for"),
    [
        ("sdxl", K, 768, "sd"),
        ("sdxl", K.replace("down_blocks_0_attentions_0", "input_blocks_1_1"), 1024, "sd"),
        ("sd", K, 2048, "sdxl"),
        ("sd3", K, 2048, "sdxl"),
        ("sd3", "lora_unet_middle_block_1_proj_in", 32, "a UNet (sd or sdxl)"),
        ("sd", "lora_unet_joint_blocks_0_x_block_attn_qkv", 64, "sd3"),
        ("sdxl", "diffusion_model.joint_blocks.0.x_block.attn.qkv", 64, "sd3"),
        ("sd", "lora_te3_encoder_block_0_layer_0_SelfAttention_q", 96, "sd3"),
        ("sd3", "lora_unet_double_blocks_0_img_attn_qkv", 3072, "Flux"),
        ("sd3", "transformer.single_transformer_blocks.0.attn.to_q", 3072, "Flux"),
    ],
)
def test_another_family_is_named(checkpoint, name, inputs, made_for, refused):
    message = refused(layer(name, 64, inputs), {"modelspec.architecture": "some-model/lora"}, checkpoint)
    family = checkpoint
    assert f"made for {made_for}, this checkpoint is {family} (its metadata says some-model/lora)" in message


def test_layers_without_a_place_are_named(refused):
    unknown = "lora_unet_down_blocks_0_attentions_7_proj_in"
    message = refused(layer(K, 16, 32) | layer(unknown, 16, 16), {"ss_base_model_version": "sd_v1"})
    assert unknown in message
    assert K not in message
    assert "its metadata says sd_v1" in message
    assert "it has no text_encoder_2" in refused(
        layer("lora_te2_text_model_encoder_layers_0_mlp_fc1", 64, 32)
    )
    assert "text_encoder_3" in refused(
        layer("lora_te3_encoder_block_0_layer_0_SelfAttention_q", 64, 96), None, "sd3-no-t5"
    )


def test_sd3_attention_of_other_width(refused):
    name = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    assert "(64, 2) x (2, 64)" in refused(layer(name, 64, 64), None, "sd3")


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float32, float("inf")),
        (torch.float16, float("-inf")),
        (torch.bfloat16, float("nan")),
        (torch.float8_e4m3fn, float("nan")),
    ],
)
def test_values_that_are_not_finite(dtype, value, refused):
    tensors = layer(K, 16, 32)
    tensors[f"{K}.lora_up.weight"][3, 1] = value
    message = refused({key: tensor.to(dtype) for key, tensor in tensors.items()})
    assert f"{K}.lora_up.weight has values that are not finite" in message


def test_an_alpha_that_is_not_finite(refused):
    assert f"{K}.alpha" in refused({**layer(K, 16, 32), f"{K}.alpha": torch.tensor(float("inf"))})


def test_tensors_that_make_no_layer(refused):
    full = layer(K, 16, 32)
    down, up = full.values()
    assert f"down and up: {K}" in refused({f"{K}.lora_down.weight": down})
    assert f"down and up: {K}" in refused({f"{K}.alpha": torch.tensor(1.0)})
    assert "no tensors" in refused({})
    for broken in (
        {**full, f"{K}.alpha": torch.ones(3)},
        {**full, f"{K}.lora_down.weight": torch.ones(3, 32)},
        {**full, f"{K}.lora_down.weight": torch.tensor(1.0)},
        {**full, f"{K}.lora_down.weight": down.to(torch.int8)},
        {f"{K}.lora_down.weight": torch.ones(0, 32), f"{K}.lora_up.weight": torch.ones(16, 0)},
        {**full, f"{K}.lora_mid.weight": torch.ones(2, 3, 3, 3)},
    ):
        assert f"LoRA layer {K} of " in refused(broken)
    assert "belong to no LoRA layer: a.bias" in refused({**full, "a.bias": up.clone()})


def test_one_layer_twice(refused):
    again = layer(K.replace("down_blocks_0_attentions_0", "input_blocks_1_1"), 16, 32)
    assert "are the same layer" in refused(layer(K, 16, 32) | again)
    both = layer(Q, 32, 32, "lora_A.one lora_B.one") | layer(Q, 32, 32, "lora_A.two lora_B.two")
    assert "several LoRAs" in refused(both)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora_adapter_metadata", "{"),
        ("lora_adapter_metadata", "[1]"),
        ("lora_adapter_metadata", json.dumps({"unet.lora_alpha": "much"})),
        ("lora_adapter_metadata", json.dumps({"unet.lora_alpha": float("inf")})),
        ("lora_adapter_metadata", json.dumps({"unet.alpha_pattern": {"(": 1.0}})),
        ("sfumato.sampling", "{"),
        ("sfumato.sampling", "[1]"),
    ],
)
def test_damaged_metadata(key, value, refused):
    message = refused(layer(Q, 32, 32), {key: value})
    assert key in message or "lora_alpha" in message


@pytest.mark.parametrize(
    "header",
    [
        b"\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"",
        b'{"a":{"dtype":"F32","shape":[1073741824,1073741824,1073741824],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
    ],
    ids=["length", "empty", "overflow", "truncated", "negative"],
)
def test_damaged_files(header, checkpoints, tmp_path):
    file: Path = tmp_path / "lora.safetensors"
    whole = header if len(header) <= 8 else len(header).to_bytes(8, "little") + header + b"\0" * 4
    file.write_bytes(whole)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        read_lora(file, 1.0, open_checkpoint(checkpoints("sd")))


def test_a_folder_and_pickles(checkpoints, tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_lora(tmp_path, 1.0, open_checkpoint(checkpoints("sd")))
    for suffix in (".pt", ".ckpt", ".bin"):
        with pytest.raises(CheckpointError, match="pickle"):
            read_lora(tmp_path / f"lora{suffix}", 1.0, open_checkpoint(checkpoints("sd")))
