"""`mini-sd`, `mini-xl`, `mini-xl-refiner` and `mini-vega`: the UNet architectures in small."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from sfumato.train.embedded.group_norm import use_channels_last
from sfumato.train.embedded.models.base import (
    CHANNELS,
    SMALL,
    EmbeddedModel,
    Examples,
    Texts,
    clip_config,
    encode_both,
)

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "trailing",  # sampling begins at the last timestep
}
LAST_TIMESTEP = 999  # of the schedule
AESTHETIC, NOT_AESTHETIC = 6.0, 2.5
XL_LEVELS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 32,
}
XL_OPTIONS = {"force_zeros_for_empty_prompt": False, "add_watermarker": False}


def _unet(**config: Any) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=16,
        **config,
    )
    use_channels_last(unet)
    return unet


class UnetModel(EmbeddedModel):
    """Epsilon prediction, weighted by min-SNR with gamma 20 (Hang et al. 2023, who took 5).

    It is their weighting of the velocity's error, min(SNR + 1, gamma) for that of the clean latents; that of
    epsilon's all but ignores the noisy half of the timesteps, where colours and shapes are decided. With a
    gamma of 5 the other end is learned too little, where the style is (`benchmarks/by_strength.py`). The
    noisy timesteps are drawn more often, too: what a caption looks like is learned there, and last
    (`benchmarks/by_noise.py`).

    A share of the pictures is noise alone, at the last timestep. The schedule leaves some of the picture in
    the noise even there, enough to tell it by, and sampling begins without (Lin et al. 2023). Theirs is a
    schedule that ends in noise, which epsilon cannot be predicted for; here the schedule stays, and the
    epsilon to predict is the one that leads from the noise to the picture.
    """

    steps: ClassVar[int] = 25
    guidance: ClassVar[float] = 4.0
    last_timestep: ClassVar[int] = 1000
    noisiness: ClassVar[float] = 0.8  # exponent of a uniform draw; 1: all timesteps as often
    unseen: ClassVar[float] = 0.25  # share of pictures that are noise alone
    part: ClassVar[str] = "unet"
    denoiser: UNet2DConditionModel

    @abstractmethod
    def conditioning(self, sides: Tensor, ids: list[Tensor]) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Context ([batch, 16, width]) and the added conditions of SDXL."""

    def draw(self, examples: Examples, generator: torch.Generator) -> tuple[Tensor, ...]:
        drawn = torch.rand(len(examples.latents), generator=generator) ** self.noisiness
        timesteps = (self.last_timestep * drawn).long().clamp(max=self.last_timestep - 1)
        unseen = torch.rand(len(drawn), generator=generator) < self.unseen
        timesteps = torch.where(unseen, LAST_TIMESTEP, timesteps)
        noise = torch.randn(examples.latents.shape, generator=generator)
        return examples.latents, noise, timesteps, examples.sides, *self.token_ids(examples.captions)

    def forward(self, *batch: Tensor) -> dict[str, Tensor]:
        latents, noise, timesteps, sides, *ids = batch
        noised, epsilon = self.noised(latents, noise, timesteps)
        return {"loss": self.distance(self.predict(noised, timesteps, sides, ids), epsilon, timesteps)}

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Latents with noise as the UNet is shown them, of unit variance, and the epsilon to predict.

        Noise alone at the last timestep. Not the scheduler's `add_noise`: that of Euler leaves the scaling to
        the pipeline, and its sigmas are those of the last sampling.
        """
        alpha = self.alpha(timesteps).view(-1, 1, 1, 1)
        unseen = (timesteps == LAST_TIMESTEP).view(-1, 1, 1, 1)
        noised = torch.where(unseen, noise, alpha.sqrt() * latents + (1 - alpha).sqrt() * noise)
        return noised, (noised - alpha.sqrt() * latents) / (1 - alpha).sqrt()

    def alpha(self, timesteps: Tensor) -> Tensor:
        """The schedule's cumulative alphas, float32 in the timesteps' shape."""
        alphas: Tensor = self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        return alphas

    def predict(self, noised: Tensor, timesteps: Tensor, sides: Tensor, ids: list[Tensor]) -> Tensor:
        """The noise in noised latents (float32, of their shape)."""
        context, added = self.conditioning(sides, ids)
        predicted: Tensor = self.denoiser(noised, timesteps, context, added_cond_kwargs=added).sample
        return predicted.float()

    def distance(self, predicted: Tensor, epsilon: Tensor, timesteps: Tensor) -> Tensor:
        """Weighted mean squared error of a prediction, a scalar."""
        return (self.weight(timesteps) * (predicted - epsilon).square().mean((1, 2, 3))).mean()

    def weight(self, timesteps: Tensor) -> Tensor:
        """Weight (float32 [batch]) of epsilon's squared error."""
        alpha = self.alpha(timesteps)
        snr = alpha / (1 - alpha)
        return torch.clamp(snr + 1, max=20) / snr

    def matrices(self) -> list[nn.Parameter]:
        blocks = (self.denoiser.down_blocks, self.denoiser.mid_block, self.denoiser.up_blocks)
        return [p for block in blocks for p in block.parameters() if p.ndim > 1]


class MiniSd(UnetModel):
    """SD 1.x: attention at 16x16 and 8x8, one CLIP encoder."""

    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    pipeline_class: ClassVar[Any] = StableDiffusionPipeline
    options: ClassVar[Mapping[str, Any]] = {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }

    def __init__(self, texts: Texts) -> None:
        super().__init__()
        self.tokenizer = texts.clip("tokenizer")
        self.text_encoder = CLIPTextModel(clip_config(self.tokenizer, 128, 2))
        self.denoiser = _unet(
            block_out_channels=(64, 128, 192),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=128,
            attention_head_dim=(2, 4, 6),
        )
        self.scheduler = DDIMScheduler(**SCHEDULE, set_alpha_to_one=False, clip_sample=False)

    def conditioning(self, sides: Tensor, ids: list[Tensor]) -> tuple[Tensor, None]:
        return self.text_encoder(ids[0]).last_hidden_state, None


class MiniXl(UnetModel):
    """SDXL: attention at 8x8 and 4x4 (depths 2 and 2), two CLIP encoders, size conditioning.

    A share of the pictures was brought up from 64x64, and the time ids say so.
    """

    sized: ClassVar[bool] = True
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    pipeline_class: ClassVar[Any] = StableDiffusionXLPipeline
    options: ClassVar[Mapping[str, Any]] = XL_OPTIONS
    depths: ClassVar[tuple[int, ...]] = (1, 2, 2)
    middle: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, texts: Texts) -> None:
        super().__init__()
        self.tokenizer = texts.clip("tokenizer")
        self.tokenizer_2 = texts.clip("tokenizer_2", pad="!")
        self.text_encoder = CLIPTextModel(clip_config(self.tokenizer, 128, 2))
        self.text_encoder_2 = CLIPTextModelWithProjection(clip_config(self.tokenizer_2, 160, 2))
        self.denoiser = _unet(
            block_out_channels=(64, 128, 160),
            transformer_layers_per_block=self.depths,
            attention_head_dim=(2, 4, 5),
            cross_attention_dim=288,
            projection_class_embeddings_input_dim=160 + 6 * 32,
            **XL_LEVELS,
            **self.middle,
        )
        self.scheduler = EulerDiscreteScheduler(**SCHEDULE)

    def conditioning(self, sides: Tensor, ids: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        context, _, second = encode_both(self.text_encoder, self.text_encoder_2, ids[0], ids[1])
        zero, whole = torch.zeros_like(sides), torch.full_like(sides, 128)
        time_ids = torch.stack([sides, sides, zero, zero, whole, whole], dim=1)
        return context, {"text_embeds": second.text_embeds, "time_ids": time_ids}


class MiniVega(MiniXl):
    """Segmind Vega's role: `mini-xl` with depth 1 and no attention in the middle, taught by `mini-xl`.

    The teacher's prediction is a second target (Gupta et al. 2024, without the losses on features).
    """

    depths: ClassVar[tuple[int, ...]] = (1, 1, 1)
    middle: ClassVar[Mapping[str, Any]] = {"mid_block_type": "UNetMidBlock2D"}

    def __init__(self, texts: Texts) -> None:
        super().__init__(texts)
        self.teacher: MiniXl | None = None

    def teach(self, teacher: MiniXl) -> None:
        self.teacher = teacher.requires_grad_(False).eval()

    def forward(self, *batch: Tensor) -> dict[str, Tensor]:
        if self.teacher is None:
            return super().forward(*batch)
        latents, noise, timesteps, sides, *ids = batch
        noised, epsilon = self.noised(latents, noise, timesteps)
        with torch.no_grad():
            target = self.teacher.predict(noised, timesteps, sides, ids)
        predicted = self.predict(noised, timesteps, sides, ids)
        task = self.distance(predicted, epsilon, timesteps)
        copied = self.distance(predicted, target, timesteps)
        return {"loss": 0.5 * task + copied, "task": task, "copied": copied}


class MiniXlRefiner(UnetModel):
    """SDXL's refiner: the second encoder alone, an aesthetic score, and the last fifth of the noise.

    Pictures that were brought up from 64x64 have the low score.
    """

    sized: ClassVar[bool] = True
    text_to_image: ClassVar[bool] = False
    last_timestep: ClassVar[int] = 200
    unseen: ClassVar[float] = 0.0
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder_2",)
    pipeline_class: ClassVar[Any] = StableDiffusionXLImg2ImgPipeline
    options: ClassVar[Mapping[str, Any]] = {
        **XL_OPTIONS,
        "text_encoder": None,
        "tokenizer": None,
        "requires_aesthetics_score": True,
    }

    def __init__(self, texts: Texts) -> None:
        super().__init__()
        self.tokenizer_2 = texts.clip("tokenizer_2", pad="!")
        self.text_encoder_2 = CLIPTextModelWithProjection(clip_config(self.tokenizer_2, 160, 2))
        self.denoiser = _unet(
            block_out_channels=(64, 96, 128),
            transformer_layers_per_block=(1, 1, 1),
            attention_head_dim=(2, 3, 4),
            cross_attention_dim=160,
            projection_class_embeddings_input_dim=160 + 5 * 32,
            **XL_LEVELS,
        )
        self.scheduler = EulerDiscreteScheduler(**SCHEDULE)

    def conditioning(self, sides: Tensor, ids: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        encoded = self.text_encoder_2(ids[0], output_hidden_states=True)
        zero = torch.zeros_like(sides)
        score = torch.where(sides > SMALL, AESTHETIC, NOT_AESTHETIC)
        time_ids = torch.stack([sides, sides, zero, zero, score], dim=1)
        return encoded.hidden_states[-2], {"text_embeds": encoded.text_embeds, "time_ids": time_ids}
