"""What the shapes in a file cannot tell: schedules, scales and encoders of the published models, as data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import CheckpointError
from .sections import Section
from .unet import TIME_WIDTH

Json = dict[str, Any]
CLIP_L_WIDTH = 768
END, ZERO = "<|endoftext|>", "!"  # padding tokens: OpenAI's CLIP, and OpenCLIP, which pads with zeros


@dataclass(frozen=True)
class Encoder:
    """A text encoder that a model needs.

    title, file: what people call it, and a file that has it. kinds: how it may be stored. pad: its
    tokenizer's padding token. layers: how many the model uses, where the encoder may have more.
    unprojected: whether the pooled text is taken as it is where a file has no projection.
    """

    name: str
    class_name: str
    title: str
    file: str
    activation: str = "gelu"
    kinds: tuple[str, ...] = ("clip", "open_clip")
    pad: str = ZERO
    layers: int | None = None
    unprojected: bool = False

    @property
    def tokenizer(self) -> str:
        """The folder of its tokenizer."""
        return self.name.replace("text_encoder", "tokenizer")

    @property
    def tokenizer_class(self) -> str:
        """What reads it."""
        return "T5Tokenizer" if self.kinds == ("t5",) else "CLIPTokenizer"


@dataclass(frozen=True)
class Kind:
    """One architecture: what goes into diffusers' configurations and cannot be seen in a file.

    widths: each encoder's width, from the denoiser's configuration.
    """

    title: str
    pipeline: str
    encoders: tuple[Encoder, ...]
    widths: Callable[[Json], tuple[int, ...]]
    scheduler: Json
    denoiser: Json
    vae: Json
    options: Json = field(default_factory=dict)


BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
PNDM = {
    "_class_name": "PNDMScheduler",
    **BETAS,
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
DDIM = {
    "_class_name": "DDIMScheduler",
    **BETAS,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
EULER = {
    "_class_name": "EulerDiscreteScheduler",
    **BETAS,
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}

CLIP_L = Encoder(
    "text_encoder", "CLIPTextModel", "CLIP-L", "clip_l.safetensors", "quick_gelu", ("clip",), pad=END
)
# Stable Diffusion 2 takes the state before OpenCLIP-H's last layer as if there were no such layer.
CLIP_H = Encoder("text_encoder", "CLIPTextModel", "OpenCLIP-H", "clip_h.safetensors", layers=23)
CLIP_G = Encoder("text_encoder_2", "CLIPTextModelWithProjection", "OpenCLIP-bigG", "clip_g.safetensors")
CLIP_L_POOLED = Encoder(
    "text_encoder",
    "CLIPTextModelWithProjection",
    "CLIP-L",
    "clip_l.safetensors",
    "quick_gelu",
    ("clip",),
    pad=END,
    unprojected=True,
)
T5 = Encoder("text_encoder_3", "T5EncoderModel", "T5-XXL", "t5xxl_fp16.safetensors", kinds=("t5",))

SD_VAE = {"scaling_factor": 0.18215, "sample_size": 512}
XL_VAE = {"scaling_factor": 0.13025, "sample_size": 1024, "force_upcast": True}
SD3_VAE = {"scaling_factor": 1.5305, "shift_factor": 0.0609, "sample_size": 1024, "force_upcast": True}
SD_OPTIONS: Json = {"safety_checker": [None, None], "feature_extractor": [None, None]}


def pooled_width(config: Mapping[str, Any], sizes: int) -> int:
    """The width of SDXL's pooled text, which comes with this many sizes of the picture."""
    return int(config["projection_class_embeddings_input_dim"] - sizes * TIME_WIDTH)


def _sd_widths(config: Json) -> tuple[int, ...]:
    return (config["cross_attention_dim"],)


def _xl_widths(config: Json) -> tuple[int, ...]:
    pooled = pooled_width(config, 6)
    return config["cross_attention_dim"] - pooled, pooled


def _sd3_widths(config: Json) -> tuple[int, ...]:
    return CLIP_L_WIDTH, config["pooled_projection_dim"] - CLIP_L_WIDTH, config["joint_attention_dim"]


SD1 = Kind(
    title="Stable Diffusion 1",
    pipeline="StableDiffusionPipeline",
    encoders=(CLIP_L,),
    widths=_sd_widths,
    scheduler=PNDM,
    denoiser={"sample_size": 64},
    vae=SD_VAE,
    options=SD_OPTIONS,
)
SD2 = Kind(
    title="Stable Diffusion 2",
    pipeline="StableDiffusionPipeline",
    encoders=(CLIP_H,),
    widths=_sd_widths,
    scheduler=PNDM,
    denoiser={"sample_size": 64, "upcast_attention": True},
    vae=SD_VAE,
    options=SD_OPTIONS,
)
SDXL = Kind(
    title="Stable Diffusion XL",
    pipeline="StableDiffusionXLPipeline",
    encoders=(CLIP_L, CLIP_G),
    widths=_xl_widths,
    scheduler=EULER,
    denoiser={"sample_size": 128},
    vae=XL_VAE,
    options={"force_zeros_for_empty_prompt": True},
)
REFINER = Kind(
    title="Stable Diffusion XL refiner",
    pipeline="StableDiffusionXLImg2ImgPipeline",
    encoders=(CLIP_G,),
    widths=_sd_widths,
    scheduler=EULER,
    denoiser={"sample_size": 128},
    vae=XL_VAE,
    options={
        "text_encoder": [None, None],
        "tokenizer": [None, None],
        "requires_aesthetics_score": True,
        "force_zeros_for_empty_prompt": False,
    },
)
SD3 = Kind(
    title="Stable Diffusion 3",
    pipeline="StableDiffusion3Pipeline",
    encoders=(CLIP_L_POOLED, CLIP_G, T5),
    widths=_sd3_widths,
    scheduler=FLOW,
    denoiser={"sample_size": 128},
    vae=SD3_VAE,
)
V_SIDE = 96  # Stable Diffusion 2's 768 pixels, which it learnt v-prediction at
INPAINTING = 9  # channels: latents, mask, and latents of the masked picture


def kind_of(section: Section, config: Json) -> Kind:
    """The architecture of a denoiser. config: what its shapes tell."""
    if section.kind == "mmdit":
        return SD3
    if "projection_class_embeddings_input_dim" in config:
        return REFINER if pooled_width(config, 5) == config["cross_attention_dim"] else SDXL
    return SD2 if config["use_linear_projection"] else SD1


def pipeline_of(section: Section, kind: Kind, config: Json) -> str:
    """diffusers' pipeline for a denoiser; raises CheckpointError for inputs that no supported model has."""
    inputs, outputs = config["in_channels"], config["out_channels"]
    if inputs == outputs:
        return kind.pipeline
    if kind is not SD3 and inputs == INPAINTING:
        return kind.pipeline.replace("Pipeline", "InpaintPipeline")
    raise CheckpointError(
        f"{section.source}: the denoiser takes {inputs} channels and predicts {outputs}; supported are as "
        f"many, or {INPAINTING} for inpainting"
    )
