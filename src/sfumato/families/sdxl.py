"""Stable Diffusion XL (Podell et al. 2023): two CLIP encoders, pooled text and sizes as inputs."""

from collections.abc import Mapping

import numpy as np

from .base import Array, Component, Encoded, Family, PromptContext

SCORE, NEGATIVE_SCORE = 6.0, 2.5  # what diffusers' pipelines ask the refiner for


def conditioning(encoded: Mapping[str, Encoded], context: PromptContext) -> dict[str, Array]:
    """Penultimate states side by side, the second encoder's projection, and the picture's sizes.

    Checkpoints with the second encoder alone (the refiner's layout) attend to its states only.
    """
    states = np.concatenate([part["penultimate"] for part in encoded.values()], axis=-1)
    pooled = encoded["text_encoder_2"]["pooled"]
    if context.absent and context.settings.zero_empty_negative:
        states, pooled = np.zeros_like(states), np.zeros_like(pooled)
    return {"encoder_hidden_states": states, "text_embeds": pooled, "time_ids": time_ids(context)}


def time_ids(context: PromptContext) -> Array:
    """Original size, top-left crop and target size as (height, width) pairs, [1, 6]; the refiner's, [1, 5].

    The refiner has a score of the picture's looks in the place of the target size (Podell et al. 2023).
    """
    width, height = context.size
    last: tuple[float, ...] = (height, width)
    if context.settings.aesthetic_score:
        last = (NEGATIVE_SCORE,) if context.negative else (SCORE,)
    return np.array([[height, width, 0, 0, *last]], np.float32)


SDXL = Family(
    name="sdxl",
    pipeline_classes=(
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
    ),
    components=(
        Component("text_encoder", "clip", tokenizer="tokenizer", optional=True),
        Component("text_encoder_2", "clip_projection", tokenizer="tokenizer_2"),
        Component("unet", "unet"),
        Component("vae_encoder", "vae_encoder", optional=True),
        Component("vae_decoder", "vae_decoder"),
    ),
    denoiser="unet",
    latents_input="sample",
    size_multiple=8,
    steps=50,
    guidance=5.0,
    conditioning=conditioning,
)
