"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022): a UNet attending to one CLIP encoder's states."""

from collections.abc import Mapping

from .base import Array, Component, Encoded, Family, PromptContext


def conditioning(encoded: Mapping[str, Encoded], context: PromptContext) -> dict[str, Array]:
    """The last hidden state, [1, tokens, width]."""
    return {"encoder_hidden_states": encoded["text_encoder"]["states"]}


SD = Family(
    name="sd",
    pipeline_classes=(
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "LatentConsistencyModelPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
    ),
    components=(
        Component("text_encoder", "clip", tokenizer="tokenizer"),
        Component("unet", "unet"),
        Component("vae_encoder", "vae_encoder", optional=True),
        Component("vae_decoder", "vae_decoder"),
    ),
    denoiser="unet",
    latents_input="sample",
    size_multiple=8,
    steps=50,
    guidance=7.5,
    conditioning=conditioning,
)
