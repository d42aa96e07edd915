"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): an MMDiT over latents and one joint text context."""

from collections.abc import Mapping

import numpy as np

from .base import Array, Component, Encoded, Family, PromptContext


def conditioning(encoded: Mapping[str, Encoded], context: PromptContext) -> dict[str, Array]:
    """CLIP states, zero-padded to the context's width, then T5's states (zeros where T5 was left out).

    encoder_hidden_states: [1, CLIP + T5 tokens, joint width]; pooled_projections: both CLIP projections.
    """
    clips = [encoded["text_encoder"], encoded["text_encoder_2"]]
    states = np.concatenate([clip["penultimate"] for clip in clips], axis=-1)
    width = max(context.settings.joint_attention_dim or 0, states.shape[-1])
    states = np.pad(states, ((0, 0), (0, 0), (0, width - states.shape[-1])))
    if "text_encoder_3" in encoded:
        t5 = encoded["text_encoder_3"]["states"]
    else:
        t5 = np.zeros((1, context.settings.t5_tokens or 0, width), np.float32)
    return {
        "encoder_hidden_states": np.concatenate([states, t5], axis=1),
        "pooled_projections": np.concatenate([clip["pooled"] for clip in clips], axis=-1),
    }


SD3 = Family(
    name="sd3",
    pipeline_classes=(
        "StableDiffusion3Pipeline",
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
    ),
    components=(
        Component("text_encoder", "clip_projection", tokenizer="tokenizer"),
        Component("text_encoder_2", "clip_projection", tokenizer="tokenizer_2"),
        Component("text_encoder_3", "t5", tokenizer="tokenizer_3", optional=True),
        Component("transformer", "mmdit"),
        Component("vae_encoder", "vae_encoder", optional=True),
        Component("vae_decoder", "vae_decoder"),
    ),
    denoiser="transformer",
    latents_input="hidden_states",
    size_multiple=16,
    steps=28,
    guidance=7.0,
    conditioning=conditioning,
)
