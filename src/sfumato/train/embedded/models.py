"""The embedded models' architectures: how prompts condition them, and what the denoiser is trained on."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from sfumato.train.embedded.group_norm import use_channels_last
from sfumato.train.embedded.tokenizers import train_clip, train_t5

MAX_TOKENS = 16
CHANNELS = 12


class Trainable(nn.Module, ABC):
    """A denoiser with its text encoders: `loss` on clean latents and captions, and its diffusers pipeline.

    t5_tokens: length of the T5 part of the context, None without T5.
    """

    denoiser: nn.Module
    t5_tokens: int | None = None

    @abstractmethod
    def loss(self, latents: Tensor, captions: list[str], generator: torch.Generator) -> Tensor:
        """Training loss (a scalar) on scaled latents (float32 [batch, 12, 16, 16])."""

    @abstractmethod
    def pipeline(self, vae: AutoencoderKL) -> Any:
        """The diffusers pipeline of these weights."""


def _clip_config(tokenizer: Any, width: int, layers: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=projection,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _ids(tokenizer: Any, captions: list[str]) -> Tensor:
    encoded = tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    ids: Tensor = encoded.input_ids
    return ids


class MiniSd3(Trainable):
    """SD3's architecture in small: MMDiT of 6 layers, two CLIP-form encoders and a T5-form one.

    Trained by flow matching with logit-normal timesteps (Esser et al. 2024); T5 states are zeros for
    half of the captions, as they are in an artifact without T5.
    """

    # At 96 tokens the backward of flash attention takes 40 percent of a step (measured, PyTorch 2.13).
    t5_tokens = MAX_TOKENS

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.tokenizer = train_clip(texts, 3072, MAX_TOKENS)
        self.tokenizer_2 = train_clip(texts, 3072, MAX_TOKENS, pad="!")
        self.tokenizer_3 = train_t5(texts, 2048, MAX_TOKENS)
        self.text_encoder = CLIPTextModelWithProjection(_clip_config(self.tokenizer, 128, 2, 128))
        self.text_encoder_2 = CLIPTextModelWithProjection(_clip_config(self.tokenizer_2, 160, 2, 160))
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

    def encode(self, captions: list[str], without_t5: Tensor) -> tuple[Tensor, Tensor]:
        """Context (float32 [batch, 32, 288]) and pooled embeds ([batch, 288])."""
        first = self.text_encoder(_ids(self.tokenizer, captions), output_hidden_states=True)
        second = self.text_encoder_2(_ids(self.tokenizer_2, captions), output_hidden_states=True)
        clip = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        t5 = self.text_encoder_3(_ids(self.tokenizer_3, captions)).last_hidden_state
        t5 = t5.masked_fill(without_t5[:, None, None], 0)
        return torch.cat([clip, t5], dim=1), torch.cat([first.text_embeds, second.text_embeds], dim=-1)

    def loss(self, latents: Tensor, captions: list[str], generator: torch.Generator) -> Tensor:
        batch = len(latents)
        without_t5 = torch.rand(batch, generator=generator) < 0.5
        context, pooled = self.encode(captions, without_t5)
        sigma = torch.sigmoid(torch.randn(batch, generator=generator) + 0.3)
        noise = torch.randn(latents.shape, generator=generator)
        noised = torch.lerp(latents, noise, sigma[:, None, None, None])
        predicted = self.denoiser(noised, context, pooled, sigma * 1000, return_dict=False)[0]
        return functional.mse_loss(predicted.float(), noise - latents)

    def pipeline(self, vae: AutoencoderKL) -> StableDiffusion3Pipeline:
        return StableDiffusion3Pipeline(
            transformer=self.denoiser,
            scheduler=self.scheduler,
            vae=vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            text_encoder_2=self.text_encoder_2,
            tokenizer_2=self.tokenizer_2,
            text_encoder_3=self.text_encoder_3,
            tokenizer_3=self.tokenizer_3,
        )


class MiniSd(Trainable):
    """SD 1.x's architecture in small: UNet with attention at 16x16 and 8x8, epsilon prediction.

    Min-SNR weighting with gamma 5 (Hang et al. 2023), uniform timesteps.
    """

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.tokenizer = train_clip(texts, 3072, MAX_TOKENS)
        self.text_encoder = CLIPTextModel(_clip_config(self.tokenizer, 192, 3, 192))
        self.denoiser = UNet2DConditionModel(
            sample_size=16,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            block_out_channels=(96, 192, 192),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=192,
            attention_head_dim=(3, 6, 6),
            norm_num_groups=32,
        )
        use_channels_last(self.denoiser)
        self.scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            set_alpha_to_one=False,
            clip_sample=False,
        )

    def loss(self, latents: Tensor, captions: list[str], generator: torch.Generator) -> Tensor:
        batch = len(latents)
        context = self.text_encoder(_ids(self.tokenizer, captions)).last_hidden_state
        timesteps = torch.randint(0, 1000, (batch,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        noised = self.scheduler.add_noise(latents, noise, timesteps)
        predicted = self.denoiser(noised, timesteps, context, return_dict=False)[0]
        alpha = self.scheduler.alphas_cumprod[timesteps]
        weight = (5 * (1 - alpha) / alpha).clamp(max=1)
        return (weight * (predicted.float() - noise).square().mean((1, 2, 3))).mean()

    def pipeline(self, vae: AutoencoderKL) -> StableDiffusionPipeline:
        return StableDiffusionPipeline(
            unet=self.denoiser,
            scheduler=self.scheduler,
            vae=vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


MODELS: dict[str, Callable[[list[str]], Trainable]] = {"mini": MiniSd3, "mini-sd": MiniSd}


def save(model: Trainable, vae: AutoencoderKL, folder: Path) -> None:
    """Write the diffusers folder of `model`, weights as fp16 safetensors."""
    model.pipeline(vae).to(dtype=torch.float16).save_pretrained(folder)
    model.float()
    vae.float()
