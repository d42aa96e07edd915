"""What the embedded models have in common: captions in, a loss out, and a diffusers pipeline at the end."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTokenizer, T5Tokenizer

from sfumato.train.embedded.tokenizers import train_clip, train_t5

MAX_TOKENS = 16
CHANNELS = 12
SMALL = 64


@dataclass(frozen=True)
class Texts:
    """Where tokenizers come from: the checkpoint `start` where it has them, else learned from `corpus`."""

    corpus: list[str]
    start: Path | None = None

    def clip(self, name: str, pad: str = "<|endoftext|>") -> CLIPTokenizer:
        if folder := self._kept(name):
            return CLIPTokenizer.from_pretrained(folder)
        return train_clip(self.corpus, 3072, MAX_TOKENS, pad=pad)

    def t5(self, name: str) -> T5Tokenizer:
        if folder := self._kept(name):
            return T5Tokenizer.from_pretrained(folder)
        return train_t5(self.corpus, 2048, MAX_TOKENS)

    def _kept(self, name: str) -> Path | None:
        return self.start / name if self.start and (self.start / name).is_dir() else None


@dataclass(frozen=True)
class Examples:
    """A drawn batch: scaled latents (float32 [batch, 12, 16, 16]), captions, and the side in pixels (int64
    [batch]) of the pictures before they were brought to 128x128."""

    latents: Tensor
    captions: list[str]
    sides: Tensor


class EmbeddedModel(nn.Module, ABC):
    """A denoiser with its text encoders, and how it is trained.

    steps, guidance: what `sfumato generate` uses when nothing is asked.
    t5_tokens: length of the T5 part of the context, None without T5. sized: conditioned on the pictures'
    sides. text_to_image: makes pictures from noise, without another model's help.
    part, encoders: folders of the denoiser and the text encoders in a checkpoint; an encoder is an attribute
    of that name, its tokenizer another. pipeline_class, options: diffusers' pipeline, and what it takes
    besides the components, the tokenizers, the scheduler and the autoencoder.
    """

    steps: ClassVar[int]
    guidance: ClassVar[float]
    t5_tokens: ClassVar[int | None] = None
    sized: ClassVar[bool] = False
    text_to_image: ClassVar[bool] = True
    part: ClassVar[str]
    encoders: ClassVar[tuple[str, ...]]
    pipeline_class: ClassVar[Any]
    options: ClassVar[Mapping[str, Any]] = {}
    denoiser: nn.Module
    scheduler: Any

    @abstractmethod
    def draw(self, examples: Examples, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Everything `forward` needs, on the CPU: tokens, noise, timesteps."""

    @abstractmethod
    def forward(self, *batch: Tensor) -> dict[str, Tensor]:
        """Losses (scalars) of a drawn batch."""

    @abstractmethod
    def matrices(self) -> list[nn.Parameter]:
        """The denoiser's weights that Muon trains."""

    def components(self) -> dict[str, nn.Module]:
        """Trained modules by the name of their folder in a checkpoint."""
        return {self.part: self.denoiser} | {name: getattr(self, name) for name in self.encoders}

    def tokenizers(self) -> dict[str, Any]:
        """Tokenizers by the name of their folder in a checkpoint, in the encoders' order."""
        names = [name.replace("text_encoder", "tokenizer") for name in self.encoders]
        return {name: getattr(self, name) for name in names}

    def token_ids(self, captions: list[str]) -> list[Tensor]:
        """int64 [batch, 16] for each encoder."""
        options = {"padding": "max_length", "max_length": MAX_TOKENS, "truncation": True}
        return [
            tokenizer(captions, **options, return_tensors="pt").input_ids
            for tokenizer in self.tokenizers().values()
        ]

    def pipeline(self, vae: AutoencoderKL) -> Any:
        """The diffusers pipeline of these weights."""
        return self.pipeline_class(
            vae=vae, scheduler=self.scheduler, **self.components(), **self.tokenizers(), **self.options
        )


def clip_config(tokenizer: Any, width: int, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def encode_both(first: nn.Module, second: nn.Module, ids: Tensor, ids_2: Tensor) -> tuple[Tensor, Any, Any]:
    """Penultimate states of two CLIP encoders, joined ([batch, 16, widths]), and all that each returned."""
    one = first(ids, output_hidden_states=True)
    two = second(ids_2, output_hidden_states=True)
    return torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1), one, two
