"""Single files in the original layouts: every value where diffusers' own converters put it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import originals
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
    convert_sd3_t5_checkpoint_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

import sfumato
import tiny
from sfumato import Pipeline
from sfumato.convert.single_file.opening import read_model
from sfumato.convert.weights import load_module, spellings
from sfumato.errors import InvalidRequest

Tensors = dict[str, torch.Tensor]
TINY_VAE = originals.prefixed("first_stage_model.", originals.vae(32, (1, 2, 2, 2), 4, layers=1))
TINY_VAE3 = originals.prefixed(
    "first_stage_model.", originals.vae(32, (1, 2, 2, 2), 16, quant=False, layers=1)
)
DENOISER = "model.diffusion_model."


def tiny_clip(width: int, layers: int = 2, *, project: bool = False) -> originals.Shapes:
    return originals.clip(width, layers, vocabulary=100, tokens=16, inner=1, project=project)


def tiny_open_clip(width: int, layers: int = 2) -> originals.Shapes:
    return originals.open_clip(width, layers, vocabulary=100, tokens=16, inner=1)


UNETS = {
    "sd1": originals.unet(32, (1, 2), (1, 0), 64, linear=False, layers=1),
    "sd2": originals.unet(64, (1, 2), (1, 0), 64, linear=True),
    "sdxl": originals.unet(64, (1, 2, 1), (0, 1, 2), 192, linear=True, sizes=128 + 6 * 256),
    "vega": originals.unet(64, (1, 1, 1), (0, 1, 2), 192, linear=True, sizes=128 + 6 * 256, middle=-1),
    "refiner": originals.unet(
        64, (1, 1, 1, 1), (0, 2, 2, 0), 128, linear=True, sizes=128 + 5 * 256, middle=2
    ),
}
ENCODERS = {
    "sd1": originals.prefixed("cond_stage_model.transformer.", tiny_clip(64)),
    "sd2": originals.prefixed("cond_stage_model.model.", tiny_open_clip(64, 24)),
    "refiner": originals.prefixed("conditioner.embedders.0.model.", tiny_open_clip(128)),
}
ENCODERS["sdxl"] = ENCODERS["vega"] = originals.prefixed(
    "conditioner.embedders.0.transformer.", tiny_clip(64)
) | originals.prefixed("conditioner.embedders.1.model.", tiny_open_clip(128))
T5 = originals.t5(896, 2, 4, inner=64, vocabulary=100, head=16)
SD3_ENCODERS = (
    originals.prefixed("text_encoders.clip_l.transformer.", tiny_clip(768, 1))
    | originals.prefixed("text_encoders.clip_g.transformer.", tiny_clip(128, project=True))
    | originals.prefixed("text_encoders.t5xxl.transformer.", T5)
)
MMDITS = {
    "sd3": originals.mmdit(3, 1, 12, context=896, pooled=896),
    "sd35": originals.mmdit(3, 2, 12, context=896, pooled=896, dual=2, qk=True),
}


def sd_file(name: str, path: Path, **metadata: str) -> tuple[Path, Tensors]:
    shapes = originals.prefixed(DENOISER, UNETS[name]) | TINY_VAE | ENCODERS[name]
    tensors = originals.random(shapes)
    return originals.write(path / "model.safetensors", tensors, **metadata), tensors


def sd3_file(name: str, path: Path) -> tuple[Path, Tensors]:
    shapes = originals.prefixed(DENOISER, MMDITS[name]) | TINY_VAE3 | SD3_ENCODERS
    tensors = originals.random(shapes)
    return originals.write(path / "model.safetensors", tensors), tensors


def equal(found: Tensors, expected: Tensors) -> bool:
    """The same names, but for `text_model.`, and exactly the same values."""
    placed = {
        next((s for s in spellings(name) if s in expected), name): value for name, value in found.items()
    }
    assert placed.keys() == expected.keys()
    return all(torch.equal(placed[name], value) for name, value in expected.items())


def loaded(part) -> Tensors:
    return load_module(part).state_dict()


@pytest.mark.parametrize("name", UNETS)
def test_unets_and_autoencoders_agree_with_diffusers(name, tmp_path):
    file, tensors = sd_file(name, tmp_path)
    parts = read_model(file).parts
    unet, vae = parts["unet"], parts["vae"]
    assert equal(loaded(unet), convert_ldm_unet_checkpoint(dict(tensors), unet.config))
    own = {key: value for key, value in tensors.items() if key.startswith("first_stage_model.")}
    assert equal(loaded(vae), convert_ldm_vae_checkpoint(own, vae.config))


@pytest.mark.parametrize("name", UNETS)
def test_text_encoders_agree_with_diffusers(name, tmp_path):
    file, tensors = sd_file(name, tmp_path)
    parts = read_model(file).parts
    open_clip = {
        "sd2": ("text_encoder", "cond_stage_model.model."),
        "sdxl": ("text_encoder_2", "conditioner.embedders.1.model."),
        "vega": ("text_encoder_2", "conditioner.embedders.1.model."),
        "refiner": ("text_encoder_2", "conditioner.embedders.0.model."),
    }
    if name in open_clip:
        part, prefix = open_clip[name]
        model = SimpleNamespace(config=SimpleNamespace(hidden_size=parts[part].config["hidden_size"]))
        assert equal(loaded(parts[part]), convert_open_clip_checkpoint(model, dict(tensors), prefix=prefix))
    if name in ("sd1", "sdxl", "vega"):
        assert equal(loaded(parts["text_encoder"]), convert_ldm_clip_checkpoint(dict(tensors)))


def test_stable_diffusion_2_stops_before_the_last_layer(tmp_path):
    file, _ = sd_file("sd2", tmp_path)
    assert read_model(file).parts["text_encoder"].config["num_hidden_layers"] == 23


@pytest.mark.parametrize("name", MMDITS)
def test_mmdits_agree_with_diffusers(name, tmp_path):
    file, tensors = sd3_file(name, tmp_path)
    parts = read_model(file).parts
    own = {key: value for key, value in tensors.items() if key.startswith(DENOISER)}
    assert equal(loaded(parts["transformer"]), convert_sd3_transformer_checkpoint_to_diffusers(own))
    own = {key: value for key, value in tensors.items() if key.startswith("first_stage_model.")}
    assert equal(loaded(parts["vae"]), convert_ldm_vae_checkpoint(own, parts["vae"].config))


def test_stable_diffusion_3s_encoders_agree_with_diffusers(tmp_path):
    file, tensors = sd3_file("sd3", tmp_path)
    parts = read_model(file).parts
    clip_l = convert_ldm_clip_checkpoint(dict(tensors), "text_encoders.clip_l.transformer.")
    # As diffusers does where the file has no projection, which published ones have not.
    clip_l["text_projection.weight"] = torch.eye(768)
    assert equal(loaded(parts["text_encoder"]), clip_l)
    clip_g = convert_ldm_clip_checkpoint(dict(tensors), "text_encoders.clip_g.transformer.")
    assert equal(loaded(parts["text_encoder_2"]), clip_g)
    t5 = convert_sd3_t5_checkpoint_to_diffusers(dict(tensors))
    found = loaded(parts["text_encoder_3"])
    assert torch.equal(found.pop("encoder.embed_tokens.weight"), t5["shared.weight"])
    assert equal(found, t5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_narrow_weights(dtype, tmp_path):
    _, tensors = sd3_file("sd35", tmp_path)
    narrow = {name: value.to(dtype) for name, value in tensors.items()}
    parts = read_model(originals.write(tmp_path / "narrow.safetensors", narrow)).parts
    wide = torch.float16 if dtype == torch.float8_e4m3fn else dtype
    expected = convert_sd3_transformer_checkpoint_to_diffusers(
        {name: value.to(wide) for name, value in narrow.items() if name.startswith(DENOISER)}
    )
    assert equal(loaded(parts["transformer"]), expected)
    assert all(value.dtype == wide for value in loaded(parts["text_encoder"]).values())


def test_parts_beside_a_bare_denoiser(tmp_path):
    """A file of the denoiser alone, without its prefix; the rest as people download it for SD 3."""
    whole, tensors = sd3_file("sd3", tmp_path)

    def part(name: str, prefix: str, *, keep: str = "") -> Path:
        chosen = {key: value for key, value in tensors.items() if key.startswith(prefix)}
        renamed = {keep + key.removeprefix(prefix): value for key, value in chosen.items()}
        return originals.write(tmp_path / f"{name}.safetensors", renamed)

    alone = part("sd3_medium", DENOISER)
    vae = part("vae", "first_stage_model.")
    encoders = [part(name, f"text_encoders.{name}.transformer.") for name in ("t5xxl", "clip_l", "clip_g")]
    assembled = read_model(alone, vae=vae, text_encoders=encoders).parts
    for name, expected in read_model(whole).parts.items():
        assert assembled[name].config == expected.config
        assert equal(loaded(assembled[name]), loaded(expected))
    assert read_model(alone, vae=whole, text_encoders=[whole]).parts.keys() == assembled.keys()
    without = read_model(alone, vae=vae, text_encoders=encoders[1:], without_t5=True)
    assert "text_encoder_3" not in without.parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny SD in diffusers layout, made of single.safetensors in it by diffusers' converters."""
    root = tmp_path_factory.mktemp("sd")
    tiny.make("sd", root)
    vocabulary = len(json.loads((root / "tokenizer/tokenizer.json").read_text())["model"]["vocab"])
    shapes = originals.clip(64, 2, vocabulary=vocabulary, tokens=tiny.CLIP_TOKENS, inner=2)
    encoder = originals.prefixed("cond_stage_model.transformer.", shapes)
    tensors = originals.random(originals.prefixed(DENOISER, UNETS["sd1"]) | TINY_VAE | encoder, seed=1)
    single = originals.write(root / "single.safetensors", tensors)
    parts = read_model(single).parts
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=8,
    )
    unet.load_state_dict(convert_ldm_unet_checkpoint(dict(tensors), parts["unet"].config))
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        sample_size=512,
    )
    own = {key: value for key, value in tensors.items() if key.startswith("first_stage_model.")}
    vae.load_state_dict(convert_ldm_vae_checkpoint(own, parts["vae"].config))
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=1,
            max_position_embeddings=tiny.CLIP_TOKENS,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
        )
    )
    clip = convert_ldm_clip_checkpoint(dict(tensors))
    text.load_state_dict({name.removeprefix("text_model."): value for name, value in clip.items()})
    for name, module in (("unet", unet), ("vae", vae), ("text_encoder", text)):
        shutil.rmtree(root / name)
        module.save_pretrained(root / name)
    return root


def test_the_same_picture_as_from_a_diffusers_folder(folder, tmp_path):
    def picture(source: Path, out: Path) -> bytes:
        sfumato.convert(source, out, precision="fp32")
        return Pipeline.load(out)("a red apple", steps=2, seed=3, size=(64, 64)).images[0].tobytes()

    expected = picture(folder, tmp_path / "folder")
    assert picture(folder / "single.safetensors", tmp_path / "single") == expected
    assert len(set(expected)) > 100
    with pytest.raises(InvalidRequest, match="a folder; text_encoders"):
        sfumato.convert(folder, tmp_path / "other", text_encoders=[folder / "text_encoder"])


def test_components_of_a_diffusers_folder(folder, tmp_path):
    single = folder / "single.safetensors"
    tensors = {key: value for key, value in load_file(single).items() if key.startswith(DENOISER)}
    alone = originals.write(tmp_path / "unet.safetensors", tensors)
    expected = read_model(single).parts
    for vae, encoder in ((folder / "vae", folder / "text_encoder"), (folder, folder)):
        parts = read_model(alone, vae=vae, text_encoders=[encoder]).parts
        for name in ("vae", "text_encoder"):
            assert equal(loaded(parts[name]), loaded(expected[name]))
        assert parts["vae"].config["_class_name"] == "AutoencoderKL"
