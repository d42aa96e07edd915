"""The same picture as the diffusers pipeline, in float32: final latents within 1e-3, relative."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler
from diffusers.schedulers import AysSchedules

import tiny
from sfumato import Pipeline

PROMPT, NEGATIVE = "a smiling red apple", "green house"
STEPS, GUIDANCE = 4, 5.0
SIZES = [(64, 64), (96, 64), (64, 112)]
UNET_SIZES = [*SIZES, (72, 56)]


def noise_for(family: str, size: tuple[int, int], seed: int) -> torch.Tensor:
    channels = 16 if family.startswith("sd3") else 4
    shape = (1, channels, size[1] // 8, size[0] // 8)
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def diffusers_latents(
    checkpoint: Path, noise: torch.Tensor, size: tuple[int, int], **options: object
) -> np.ndarray:
    index = json.loads((checkpoint / "model_index.json").read_text())
    absent = {name: None for name, entry in index.items() if entry == [None, None]}
    pipe = DiffusionPipeline.from_pretrained(checkpoint, **absent)
    pipe.set_progress_bar_config(disable=True)
    scheduler = options.pop("scheduler", None)
    if scheduler is not None:
        pipe.scheduler = scheduler
    if hasattr(pipe, "tokenizer_3"):
        options["max_sequence_length"] = index.get("t5_tokens", tiny.T5_TOKENS)
    options = {
        "negative_prompt": NEGATIVE,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        **options,
    }
    out = pipe(PROMPT, width=size[0], height=size[1], latents=noise, output_type="latent", **options)
    return out.images.numpy()


def our_latents(artifact: Path, seed: int, size: tuple[int, int], **options: object) -> np.ndarray:
    pipe = Pipeline.load(artifact, precision="f32")
    options = {"negative_prompt": NEGATIVE, "steps": STEPS, "guidance": GUIDANCE, **options}
    return pipe(PROMPT, size=size, seed=seed, output_type="latent", **options).images


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("name", tiny.NAMES)
def test_latents_equal_diffusers(name, checkpoints, artifacts):
    sizes = SIZES if name.startswith("sd3") else UNET_SIZES
    for seed, size in enumerate(sizes, start=7):
        theirs = diffusers_latents(checkpoints(name), noise_for(name, size, seed), size)
        ours = our_latents(artifacts(name), seed, size)
        assert ours.shape == theirs.shape
        assert relative_error(ours, theirs) < 1e-3, (name, size, seed)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_latents_equal_diffusers_without_guidance(name, checkpoints, artifacts):
    theirs = diffusers_latents(checkpoints(name), noise_for(name, (64, 64), 3), (64, 64), guidance_scale=1.0)
    ours = our_latents(artifacts(name), 3, (64, 64), guidance=1.0)
    assert relative_error(ours, theirs) < 1e-3


def test_absent_negative_prompt_is_zeros_for_sdxl(checkpoints, artifacts):
    """force_zeros_for_empty_prompt: no negative prompt differs from an empty one."""
    noise = noise_for("sdxl", (64, 64), 5)
    absent, empty = (our_latents(artifacts("sdxl"), 5, (64, 64), negative_prompt=each) for each in (None, ""))
    theirs = diffusers_latents(checkpoints("sdxl"), noise, (64, 64), negative_prompt=None)
    assert relative_error(absent, theirs) < 1e-3
    assert relative_error(empty, theirs) > 1e-2


def test_fractional_timesteps_reach_the_unet(checkpoints, artifacts, tmp_path):
    """Three linearly spaced steps pass 499.5; the UNet's int64 input must not truncate it."""
    scheduler = EulerDiscreteScheduler(**tiny.BETAS, timestep_spacing="linspace")
    theirs = diffusers_latents(
        checkpoints("sdxl"),
        noise_for("sdxl", (64, 64), 9),
        (64, 64),
        scheduler=scheduler,
        num_inference_steps=3,
    )
    folder = shutil.copytree(artifacts("sdxl"), tmp_path / "linspace")
    manifest = json.loads((folder / "sfumato.json").read_text())
    manifest["sampling"]["scheduler"]["timestep_spacing"] = "linspace"
    (folder / "sfumato.json").write_text(json.dumps(manifest))
    # Truncation costs 1.4e-4 here, exact timesteps 1.6e-6: the general bound would not notice.
    assert relative_error(our_latents(folder, 9, (64, 64), steps=3), theirs) < 1e-5


def test_the_prompt_matters(artifacts):
    """Parity would be hollow if the tiny models ignored their conditioning."""
    for name in tiny.NAMES:
        pipe = Pipeline.load(artifacts(name), precision="f32")
        one, other = (
            pipe(prompt, seed=1, size=(64, 64), steps=STEPS, guidance=GUIDANCE, output_type="latent").images
            for prompt in ("a red apple", "noto cat")
        )
        assert relative_error(one, other) > 1e-2, name


@pytest.mark.parametrize("spacing", ["karras", "exponential"])  # for beta diffusers wants SciPy
def test_spacings_equal_diffusers(spacing, checkpoints, artifacts):
    asked = {"timestep_spacing": "leading", "steps_offset": 1, f"use_{spacing}_sigmas": True}
    theirs = diffusers_latents(
        checkpoints("sdxl"),
        noise_for("sdxl", (64, 64), 4),
        (64, 64),
        scheduler=EulerDiscreteScheduler(**tiny.BETAS, **asked),
    )
    assert relative_error(our_latents(artifacts("sdxl"), 4, (64, 64), spacing=spacing), theirs) < 1e-3
    assert relative_error(our_latents(artifacts("sdxl"), 4, (64, 64)), theirs) > 1e-2


def test_align_your_steps_equals_diffusers(checkpoints, artifacts):
    noise = noise_for("sdxl", (64, 64), 4)
    timesteps = AysSchedules["StableDiffusionXLTimesteps"]
    theirs = diffusers_latents(checkpoints("sdxl"), noise, (64, 64), timesteps=timesteps)
    ours = our_latents(artifacts("sdxl"), 4, (64, 64), spacing="ays", steps=len(timesteps))
    assert relative_error(ours, theirs) < 1e-3
