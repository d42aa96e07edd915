"""The vocabulary in which a family is described."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Array = NDArray[np.float32]
Kind = Literal["clip", "clip_projection", "t5", "unet", "mmdit", "vae_encoder", "vae_decoder"]
CLIP_KINDS: tuple[Kind, ...] = ("clip", "clip_projection")
TEXT_KINDS: tuple[Kind, ...] = (*CLIP_KINDS, "t5")


@dataclass(frozen=True)
class Component:
    """One network of a pipeline: its folder name, what it is, and where its tokenizer lives."""

    name: str
    kind: Kind
    tokenizer: str | None = None
    optional: bool = False


class ConditioningSettings(BaseModel):
    """What a checkpoint fixes about its conditioning; stored in the artifact's manifest.

    aesthetic_score: the sizes end with a score of the picture's looks instead of the target size (SDXL's
        refiner; ``requires_aesthetics_score``).
    zero_empty_negative: where no negative prompt is given, use zeros instead of the encoded "" (SDXL's
        ``force_zeros_for_empty_prompt``).
    t5_tokens: length of SD3's T5 part of the context. Attention is unmasked, so it changes the picture.
    joint_attention_dim: width of SD3's context, which narrower CLIP states are padded to.
    guidance_embedding_dim: width of the embedded guidance scale that the denoiser takes as an input (UNets of
        latent consistency models, ``time_cond_proj_dim``); None where guidance is between its predictions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    aesthetic_score: bool = False
    zero_empty_negative: bool = False
    t5_tokens: int | None = Field(default=None, ge=1, le=4096)
    joint_attention_dim: int | None = Field(default=None, ge=1, le=65536)
    guidance_embedding_dim: int | None = Field(default=None, ge=4, le=65536)

    @property
    def embeds_guidance(self) -> bool:
        """Whether the denoiser takes the guidance scale as an input."""
        return self.guidance_embedding_dim is not None


# What one text encoder says about one prompt, float32:
# "states": last hidden state after the final layer norm, [1, tokens, width];
# "penultimate": hidden state that enters the last layer, not normalised, [1, tokens, width] (CLIP only);
# "pooled": projection of the end-of-text state, [1, projection] (encoders with one only).
Encoded = Mapping[str, Array]


@dataclass(frozen=True)
class PromptContext:
    """What conditioning depends on besides the encoded prompt.

    size: width and height of the picture in pixels.
    negative: it says what the picture should not show.
    absent: no text was given (a negative prompt of None), as opposed to an empty one.
    """

    size: tuple[int, int]
    settings: ConditioningSettings
    negative: bool = False
    absent: bool = False


Conditioning = Callable[[Mapping[str, Encoded], PromptContext], dict[str, Array]]


@dataclass(frozen=True)
class Family:
    """Everything that `convert` and the runtime need to know about one architecture.

    pipeline_classes: the diffusers pipelines that ``model_index.json`` may name, text to image first.
    denoiser: name of the component that predicts noise or velocity.
    latents_input: the denoiser's tensor that takes the noisy latents.
    size_multiple: both sides of a picture are multiples of this many pixels (for a VAE of factor 8).
    steps, guidance: what the published pipelines use.
    conditioning: pure function from encoded prompt (by component name) to the denoiser's other inputs,
        each float32 with a leading batch axis of 1.
    """

    name: str
    pipeline_classes: tuple[str, ...]
    components: tuple[Component, ...]
    denoiser: str
    latents_input: str
    size_multiple: int
    steps: int
    guidance: float
    conditioning: Conditioning

    def component(self, name: str) -> Component:
        """The component of that name; KeyError if the family has none."""
        return {component.name: component for component in self.components}[name]
