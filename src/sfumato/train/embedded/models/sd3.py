"""`mini`: SD3's architecture in small."""

from typing import Any, ClassVar

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

from sfumato.train.embedded.models.base import (
    CHANNELS,
    MAX_TOKENS,
    EmbeddedModel,
    Examples,
    Texts,
    clip_config,
    encode_both,
)


class Mini(EmbeddedModel):
    """MMDiT of 6 layers, two CLIP-form encoders and a T5-form one.

    Trained by flow matching with logit-normal timesteps (Esser et al. 2024), of a wider spread than SD3's.
    A share of the pictures is noise alone, where sampling begins: what a caption looks like is learned there
    (`benchmarks/by_noise.py`), since a tenth of a picture in the noise is enough to tell it by without a
    caption. T5 states are zeros for half of the captions, as they are in an artifact without T5.
    """

    steps: ClassVar[int] = 20
    guidance: ClassVar[float] = 4.0
    noisiness: ClassVar[tuple[float, float]] = (0.0, 1.4)  # location and scale of sigma's logit
    unseen: ClassVar[float] = 0.2  # share of pictures that are noise alone
    t5_tokens: ClassVar[int | None] = MAX_TOKENS
    part: ClassVar[str] = "transformer"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2", "text_encoder_3")
    pipeline_class: ClassVar[Any] = StableDiffusion3Pipeline

    def __init__(self, texts: Texts) -> None:
        super().__init__()
        self.tokenizer = texts.clip("tokenizer")
        self.tokenizer_2 = texts.clip("tokenizer_2", pad="!")
        self.tokenizer_3 = texts.t5("tokenizer_3")
        self.text_encoder = CLIPTextModelWithProjection(clip_config(self.tokenizer, 128, 2))
        self.text_encoder_2 = CLIPTextModelWithProjection(clip_config(self.tokenizer_2, 160, 2))
        self.text_encoder_3 = T5EncoderModel(
            T5Config(
                vocab_size=len(self.tokenizer_3),
                d_model=288,
                d_kv=32,
                d_ff=320,
                num_layers=2,
                num_heads=6,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
            )
        )
        self.denoiser = SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=6,
            num_attention_heads=3,
            attention_head_dim=64,
            joint_attention_dim=288,
            caption_projection_dim=192,
            pooled_projection_dim=288,
            pos_embed_max_size=32,
            qk_norm="rms_norm",
        )
        self.scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)

    def draw(self, examples: Examples, generator: torch.Generator) -> tuple[Tensor, ...]:
        batch = len(examples.latents)
        without_t5 = torch.rand(batch, generator=generator) < 0.5
        location, scale = self.noisiness
        sigmas = torch.sigmoid(scale * torch.randn(batch, generator=generator) + location)
        sigmas = sigmas.masked_fill(torch.rand(batch, generator=generator) < self.unseen, 1)
        noise = torch.randn(examples.latents.shape, generator=generator)
        return examples.latents, noise, sigmas, without_t5, *self.token_ids(examples.captions)

    def forward(self, *batch: Tensor) -> dict[str, Tensor]:
        latents, noise, sigmas, without_t5, *ids = batch
        noised = torch.lerp(latents, noise, sigmas[:, None, None, None])
        predicted = self.predict(noised, sigmas, ids, without_t5)
        return {"loss": functional.mse_loss(predicted, noise - latents)}

    def predict(self, noised: Tensor, sigmas: Tensor, ids: list[Tensor], without_t5: Tensor) -> Tensor:
        """The velocity, noise - latents, in noised latents (float32, of their shape)."""
        context, pooled = self.encode(ids, without_t5)
        predicted: Tensor = self.denoiser(noised, context, pooled, sigmas * 1000, return_dict=False)[0]
        return predicted.float()

    def encode(self, ids: list[Tensor], without_t5: Tensor) -> tuple[Tensor, Tensor]:
        """Context ([batch, 32, 288]) and pooled embeds ([batch, 288])."""
        clip, first, second = encode_both(self.text_encoder, self.text_encoder_2, ids[0], ids[1])
        t5 = self.text_encoder_3(ids[2]).last_hidden_state.masked_fill(without_t5[:, None, None], 0)
        return torch.cat([clip, t5], dim=1), torch.cat([first.text_embeds, second.text_embeds], dim=-1)

    def matrices(self) -> list[nn.Parameter]:
        blocks = self.denoiser.transformer_blocks
        return [p for p in blocks.parameters() if p.ndim == 2]
