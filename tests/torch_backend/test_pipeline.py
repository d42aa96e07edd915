"""The baseline: diffusers in float32 makes the model folder's pictures from the checkpoint."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tiny
from sfumato import Pipeline
from sfumato.compare import psnr
from sfumato.errors import CheckpointError, InvalidRequest
from sfumato.torch_backend import TorchPipeline

SETTINGS = {"seed": 7, "steps": 3, "guidance": 4.0, "size": (64, 64)}
PROMPT, NEGATIVE = "a smiling red apple", "green house"


def pictures(
    checkpoint: Path, artifact: Path, negative: str | None = NEGATIVE
) -> tuple[np.ndarray, np.ndarray]:
    theirs, _ = TorchPipeline.load(checkpoint).generate(PROMPT, negative=negative, **SETTINGS)
    ours = Pipeline.load(artifact, precision="f32")(PROMPT, negative_prompt=negative, **SETTINGS).images[0]
    return np.asarray(theirs), np.asarray(ours)


@pytest.fixture
def copy(checkpoints: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint to change."""
    return lambda name: Path(shutil.copytree(checkpoints(name), tmp_path / name))


@pytest.mark.parametrize("name", [*tiny.NAMES, *tiny.CONSISTENT])
def test_the_same_picture_as_the_model_folder(name, checkpoints, artifacts):
    assert psnr(*pictures(checkpoints(name), artifacts(name))) > 40


def test_no_negative_prompt_means_the_same(checkpoints, artifacts):
    assert psnr(*pictures(checkpoints("sdxl"), artifacts("sdxl"), negative=None)) > 40


def test_times_and_the_checkpoint_described(checkpoints, artifacts):
    pipe = TorchPipeline.load(checkpoints("sd3"), name="baseline")
    for steps in (2, 3):
        _, run = pipe.generate(PROMPT, **{**SETTINGS, "steps": steps})
        assert len(run.steps) == steps
        assert sum(run.steps) == pytest.approx(run.denoise)
        assert run.encode + run.denoise + run.decode <= run.total
        encoders = {"text_encoder", "text_encoder_2", "text_encoder_3"}
        assert set(run.components) == encoders | {"transformer", "vae_decoder"}
        assert sum(run.components[name] for name in encoders) <= run.encode
        assert run.components["transformer"] <= run.denoise
    model, manifest = pipe.model, Pipeline.load(artifacts("sd3")).artifact.manifest
    assert (model.name, model.kind, model.family, model.precision) == ("baseline", "torch", "sd3", "fp32")
    assert model.size == manifest.latents.default_size
    assert (model.steps, model.guidance) == (manifest.sampling.steps, manifest.sampling.guidance)
    assert set(model.components) == set(manifest.components)
    vae = model.components["vae_encoder"] + model.components["vae_decoder"]
    weights = checkpoints("sd3") / "vae" / "diffusion_pytorch_model.safetensors"
    assert vae == pytest.approx(weights.stat().st_size, rel=0.2)
    assert sum(model.components.values()) < model.disk_bytes


def test_without_its_t5_it_still_draws(copy):
    folder = copy("sd3")
    tiny.set_index(folder, text_encoder_3=[None, None], tokenizer_3=[None, None])
    pipe = TorchPipeline.load(folder)
    _, run = pipe.generate(PROMPT, **SETTINGS)
    assert "text_encoder_3" not in run.components


def test_without_its_safety_checker_it_still_draws(copy):
    folder = copy("sd")
    tiny.set_index(
        folder,
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        requires_safety_checker=True,
    )
    assert TorchPipeline.load(folder).generate(PROMPT, **SETTINGS)[0].size == (64, 64)


def test_sixteen_bit_files_are_computed_in_float32(tmp_path):
    import torch

    folder = tiny.make("sd", tmp_path / "half", dtype=torch.float16)
    pipe = TorchPipeline.load(folder)
    assert pipe.model.precision == "fp16"
    assert pipe._pipe.unet.dtype == torch.float32


def test_weights_of_the_fp16_variant_are_found(copy):
    folder = copy("sd")
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    TorchPipeline.load(folder)


@pytest.mark.parametrize("name", tiny.FROM_PICTURES)
def test_models_that_begin_with_a_picture_are_refused(name, checkpoints):
    with pytest.raises(InvalidRequest, match="makes pictures of prompts"):
        TorchPipeline.load(checkpoints(name))


def test_pickles_are_refused(copy):
    folder = copy("sd")
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="pickle"):
        TorchPipeline.load(folder)


@pytest.mark.parametrize("index", [{"_class_name": "FluxPipeline"}, {"unet": ["evil", "Code"]}])
def test_foreign_classes_are_refused(index, copy):
    folder = copy("sd")
    tiny.set_index(folder, **index)
    with pytest.raises(CheckpointError, match="not supported"):
        TorchPipeline.load(folder)


def test_what_is_no_checkpoint_is_refused(tmp_path, artifacts):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "model_index.json").write_text(json.dumps({}))
    for source in (tmp_path / "absent", tmp_path / "model.safetensors", tmp_path, artifacts("sd")):
        with pytest.raises(CheckpointError, match=str(source)):
            TorchPipeline.load(source)


@pytest.mark.parametrize(
    "wrong", [{"size": (60, 64)}, {"steps": 0}, {"guidance": float("nan")}, {"seed": -1}]
)
def test_bad_requests_are_refused(wrong, checkpoints):
    pipe = TorchPipeline.load(checkpoints("sd"))
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        pipe.generate(PROMPT, **{**SETTINGS, **wrong})
