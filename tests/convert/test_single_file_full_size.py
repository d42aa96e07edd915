"""Full-size files in the original layouts: every tensor is found and every configuration derived, unread."""

import importlib.util
import inspect
import json
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import originals
import pytest
import torch
import transformers

from sfumato.convert.single_file.opening import read_model
from sfumato.convert.tensors import Store
from sfumato.convert.weights import IGNORED, TRANSFORMERS, spellings

SD_VAE = originals.vae(128, (1, 2, 4, 4), 4)
SD3_VAE = originals.vae(128, (1, 2, 4, 4), 16, quant=False)
CLIP_L = originals.clip(768, 12)
XL_ENCODERS = originals.prefixed(
    "conditioner.embedders.0.transformer.", CLIP_L | {"text_model.embeddings.position_ids": (1, 77)}
) | originals.prefixed("conditioner.embedders.1.model.", originals.open_clip(1280, 32))
SD3_ENCODERS = originals.prefixed("text_encoders.clip_l.transformer.", CLIP_L) | originals.prefixed(
    "text_encoders.clip_g.transformer.", originals.clip(1280, 32, project=True)
)
T5 = originals.prefixed("text_encoders.t5xxl.transformer.", originals.t5(4096, 24, 64, inner=10240))


def sd(unet: originals.Shapes, encoder: originals.Shapes) -> originals.Shapes:
    return (
        originals.prefixed("model.diffusion_model.", unet)
        | originals.prefixed("first_stage_model.", SD_VAE)
        | encoder
        | {"betas": (1000,), "alphas_cumprod": (1000,), "model_ema.decay": (), "model_ema.num_updates": ()}
    )


def sd3(mmdit: originals.Shapes, encoders: originals.Shapes) -> originals.Shapes:
    denoiser = originals.prefixed("model.diffusion_model.", mmdit)
    return denoiser | originals.prefixed("first_stage_model.", SD3_VAE) | encoders


FILES: dict[str, originals.Shapes] = {
    "sd15": sd(
        originals.unet(320, (1, 2, 4, 4), (1, 1, 1, 0), 768, linear=False),
        originals.prefixed("cond_stage_model.transformer.", CLIP_L),
    ),
    "sd21": sd(
        originals.unet(320, (1, 2, 4, 4), (1, 1, 1, 0), 1024, linear=True),
        originals.prefixed("cond_stage_model.model.", originals.open_clip(1024, 24)),
    ),
    "sdxl": sd(
        originals.unet(320, (1, 2, 4), (0, 2, 10), 2048, linear=True, sizes=2816),
        XL_ENCODERS,
    ),
    "vega": sd(
        originals.unet(320, (1, 2, 4), (0, 1, 2), 2048, linear=True, sizes=2816, middle=-1),
        XL_ENCODERS,
    ),
    "sdxl-refiner": sd(
        originals.unet(384, (1, 2, 4, 4), (0, 4, 4, 0), 1280, linear=True, sizes=2560, middle=4),
        originals.prefixed("conditioner.embedders.0.model.", originals.open_clip(1280, 32)),
    ),
    "sd3-medium": sd3(originals.mmdit(24, 24, 192), SD3_ENCODERS | T5),
    "sd35-medium": sd3(originals.mmdit(24, 24, 384, dual=13, qk=True), SD3_ENCODERS),
    "sd35-large": sd3(originals.mmdit(38, 38, 192, qk=True), SD3_ENCODERS),
}
MEANT_FOR_V = {"modelspec.architecture": "stable-diffusion-v2-768-v"}


@cache
def published() -> ModuleType:
    """benchmarks/full_size.py."""
    path = Path(__file__).parents[2] / "benchmarks" / "full_size.py"
    spec = importlib.util.spec_from_file_location("full_size", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["full_size"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def filled(class_name: str, config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the class's defaults for what it does not say."""
    if class_name in TRANSFORMERS:
        values = getattr(transformers, TRANSFORMERS[class_name])(**config).to_dict()
        if class_name == "CLIPTextModel":
            del values["projection_dim"]  # it has none
        return plain(values)
    parameters = inspect.signature(getattr(diffusers, class_name).__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items() if name != "self"}
    given = {name: value for name, value in config.items() if not name.startswith("_")}
    assert given.keys() <= defaults.keys()
    return plain(defaults | given)


PLACES: dict[str, dict[str, tuple[int, ...]]] = {}


def places(network: Any) -> dict[str, tuple[int, ...]]:
    """The tensors of a network as published, by diffusers' and transformers' names."""
    key = f"{network.class_name} {network.config}"
    if key not in PLACES:
        with torch.device("meta"):
            if network.class_name in TRANSFORMERS:
                config = getattr(transformers, TRANSFORMERS[network.class_name])(**network.config)
                module = getattr(transformers, network.class_name)(config)
            else:
                module = getattr(diffusers, network.class_name)(**network.config)
        PLACES[key] = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    return PLACES[key]


@pytest.fixture(autouse=True)
def unread(monkeypatch):
    def read(store, name):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(Store, "read", read)


@pytest.mark.parametrize("name", FILES)
def test_published_models_are_recognised(name, tmp_path):
    stand = published().MODELS[name]
    metadata = MEANT_FOR_V if name == "sd21" else {}
    file = originals.write_hollow(tmp_path / "model.safetensors", FILES[name], **metadata)
    assert file.stat().st_blocks * 512 < 10 * 2**20
    model = read_model(file, without_t5=name.startswith("sd35"))
    assert model.pipeline == stand.pipeline
    assert model.scheduler == stand.scheduler
    assert model.kind.options == dict(stand.options)
    wanted = {part: network for part, network in stand.networks.items() if part in model.parts}
    assert wanted.keys() == model.parts.keys()
    assert stand.networks.keys() - wanted.keys() <= {"text_encoder_3"}
    pads = {each.tokenizer: each.pad for each in model.kind.encoders if each.name != "text_encoder_3"}
    assert {key: pad for key, pad in pads.items() if pad != "<|endoftext|>"} == dict(stand.pads)
    for part, network in wanted.items():
        found = model.parts[part]
        assert found.class_name == network.class_name
        derived, given = (filled(found.class_name, dict(each)) for each in (found.config, network.config))
        if name == "vega":  # said once more there
            derived.pop("reverse_transformer_layers_per_block", None)
            given.pop("reverse_transformer_layers_per_block", None)
        assert derived == given
        expected = places(network)
        shapes = {
            next(each for each in spellings(tensor) if each in expected): stored.shape
            for tensor, stored in found.tensors.items()
            if not IGNORED.search(tensor) or tensor in expected
        }
        tied = {"encoder.embed_tokens.weight"} & expected.keys()
        assert shapes == {key: shape for key, shape in expected.items() if key not in tied}


def matched(unet: originals.Shapes, path: Path) -> dict[str, Any]:
    """The configuration derived for a UNet, whose tensors all find their place in diffusers' module."""
    file = originals.write_hollow(path / "model.safetensors", sd(unet, XL_ENCODERS))
    part = read_model(file).parts["unet"]
    with torch.device("meta"):
        module = diffusers.UNet2DConditionModel.from_config(part.config)
    assert {name: stored.shape for name, stored in part.tensors.items()} == {
        name: tuple(value.shape) for name, value in module.state_dict().items()
    }
    return part.config


def test_an_xl_that_is_no_mirror_image(tmp_path):
    """SSD-1B: one of three layers kept its ten blocks, and the middle has none."""
    up = ((4, 4, 10), (2, 1, 1), (0, 0, 0))
    unet = originals.unet(320, (1, 2, 4), (0, 2, 4), 2048, linear=True, sizes=2816, up=up, middle=-1)
    config = matched(unet, tmp_path)
    assert config["transformer_layers_per_block"] == [1, 2, 4]
    assert config["reverse_transformer_layers_per_block"] == [[4, 4, 10], [2, 1, 1], 1]
    assert config["mid_block_type"] == "UNetMidBlock2D"


def test_an_xl_of_one_layer_a_level(tmp_path):
    unet = originals.unet(320, (1, 2, 4), (0, 2, 6), 2048, linear=True, sizes=2816, layers=1)
    config = matched(unet, tmp_path)
    assert config["layers_per_block"] == 1
    assert config["transformer_layers_per_block"] == [1, 2, 6]


def test_inpainting_channels(tmp_path):
    unet = originals.unet(320, (1, 2, 4, 4), (1, 1, 1, 0), 768, linear=False, inputs=9)
    shapes = sd(unet, originals.prefixed("cond_stage_model.transformer.", CLIP_L))
    model = read_model(originals.write_hollow(tmp_path / "model.safetensors", shapes))
    assert model.parts["unet"].config["in_channels"] == 9
    assert model.pipeline == "StableDiffusionInpaintPipeline"
