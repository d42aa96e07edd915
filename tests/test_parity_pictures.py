"""From pictures as the diffusers pipelines do it, in float32: final latents within 1e-3, relative."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from test_parity import GUIDANCE, NEGATIVE, PROMPT, relative_error

from sfumato import Pipeline
from sfumato.errors import InvalidRequest

SIZE = (64, 64)
STEPS = 6


def picture() -> Image.Image:
    """Smooth colours: what a VAE is for."""
    y, x = np.mgrid[0:64, 0:64] / 63
    return Image.fromarray((np.stack([x, y, 1 - x * y], axis=-1) * 255).round().astype(np.uint8))


def box_mask() -> Image.Image:
    """White in a box whose sides are multiples of a latent."""
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 24:56] = 255
    return Image.fromarray(mask)


def theirs(class_name: str, checkpoint: Path, seed: int = 3, **options: object) -> np.ndarray:
    """Final latents of a diffusers pipeline made of a checkpoint's parts."""
    index = json.loads((checkpoint / "model_index.json").read_text())
    absent = {name: None for name, entry in index.items() if entry == [None, None]}
    pipe = getattr(diffusers, class_name).from_pretrained(checkpoint, **absent)
    pipe.set_progress_bar_config(disable=True)
    if isinstance(pipe.scheduler, diffusers.PNDMScheduler):
        # From the middle on, diffusers 0.42's takes its second step at the wrong timestep.
        pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    defaults = {"negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    if "SD3" in class_name or "Diffusion3" in class_name:
        defaults["max_sequence_length"] = 24
    generator = torch.Generator("cpu").manual_seed(seed)
    out = pipe(PROMPT, generator=generator, output_type="latent", **defaults | options)
    return out.images.numpy()


def ours(pipe: Pipeline, seed: int = 3, **options: object) -> np.ndarray:
    defaults = {"negative_prompt": NEGATIVE, "steps": STEPS, "guidance": GUIDANCE, "seed": seed}
    if pipe.artifact.manifest.sampling.sampler == "pndm":
        defaults["sampler"] = "ddim"
    return pipe(PROMPT, output_type="latent", **defaults | options).images


CLASSES = {
    "sd": "StableDiffusion{}Pipeline",
    "sd-v": "StableDiffusion{}Pipeline",
    "sdxl": "StableDiffusionXL{}Pipeline",
    "sd3": "StableDiffusion3{}Pipeline",
}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("strength", [0.5, 0.8])
def test_image_to_image(name, strength, checkpoints, artifacts):
    pipe = Pipeline.load(artifacts(name), precision="f32")
    reference = theirs(CLASSES[name].format("Img2Img"), checkpoints(name), image=picture(), strength=strength)
    assert relative_error(ours(pipe, image=picture(), strength=strength), reference) < 1e-3


@pytest.mark.parametrize("name", CLASSES)
def test_inpainting_with_an_ordinary_model(name, checkpoints, artifacts):
    if name == "sd3":
        pytest.skip("diffusers' SD3 pipeline needs 16 latent channels in the mask's place")
    pipe = Pipeline.load(artifacts(name), precision="f32")
    given = {"image": picture(), "mask_image": box_mask(), "strength": 0.7}
    reference = theirs(
        CLASSES[name].format("Inpaint"), checkpoints(name), **given, width=SIZE[0], height=SIZE[1]
    )
    assert relative_error(ours(pipe, **given), reference) < 1e-3


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting_with_an_inpainting_model(strength, checkpoints, artifacts):
    pipe = Pipeline.load(artifacts("sd-inpaint"), precision="f32")
    given = {"image": picture(), "mask_image": box_mask(), "strength": strength}
    reference = theirs(
        "StableDiffusionInpaintPipeline", checkpoints("sd-inpaint"), **given, width=SIZE[0], height=SIZE[1]
    )
    assert relative_error(ours(pipe, **given), reference) < 1e-3


@pytest.mark.parametrize("switch_at", [0.5, 0.8])
def test_base_hands_over_to_the_refiner(switch_at, checkpoints, artifacts):
    base = theirs(
        "StableDiffusionXLPipeline",
        checkpoints("sdxl"),
        denoising_end=switch_at,
        width=SIZE[0],
        height=SIZE[1],
    )
    reference = theirs(
        "StableDiffusionXLImg2ImgPipeline",
        checkpoints("refiner"),
        image=torch.from_numpy(base),
        denoising_start=switch_at,
        original_size=SIZE,
        target_size=SIZE,
    )
    pipe = Pipeline.load(artifacts("sdxl"), precision="f32")
    refiner = Pipeline.load(artifacts("refiner"), precision="f32")
    refined = ours(pipe, refiner=refiner, switch_at=switch_at, size=SIZE)
    assert relative_error(refined, reference) < 1e-3
    assert relative_error(ours(pipe, size=SIZE), reference) > 1e-2


def test_the_refiner_works_on_a_finished_picture(checkpoints, artifacts):
    reference = theirs(
        "StableDiffusionXLImg2ImgPipeline", checkpoints("refiner"), image=picture(), strength=0.5
    )
    pipe = Pipeline.load(artifacts("refiner"), precision="f32")
    assert relative_error(ours(pipe, image=picture(), strength=0.5), reference) < 1e-3


def test_a_refiner_alone_needs_a_picture(artifacts):
    with pytest.raises(InvalidRequest, match="is a refiner: give it a picture"):
        ours(Pipeline.load(artifacts("refiner")))


def test_a_refiner_of_another_family_is_refused(artifacts):
    pipe, other = (Pipeline.load(artifacts(name)) for name in ("sdxl", "sd3"))
    with pytest.raises(InvalidRequest, match=r"refiner sd3 \(sd3\) has other latents than sdxl \(sdxl\)"):
        ours(pipe, refiner=other)


@pytest.mark.parametrize("memory", ["low", "high"])
def test_two_stages_take_the_same_way_in_little_memory(memory, artifacts):
    pipe, refiner = (Pipeline.load(artifacts(name), memory=memory) for name in ("sdxl", "refiner"))
    steps: list[tuple[int, int]] = []
    images = pipe(
        PROMPT,
        refiner=refiner,
        seed=1,
        count=2,
        steps=STEPS,
        size=SIZE,
        on_step=lambda step: steps.append((step.index, step.steps)),
    ).images
    assert len(images) == 2
    assert sorted(steps) == sorted([(index, STEPS) for index in range(STEPS)] * 2)
    alone = pipe(PROMPT, refiner=refiner, seed=2, steps=STEPS, size=SIZE).images[0]
    assert alone.tobytes() == images[1].tobytes()
