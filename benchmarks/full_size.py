"""The published configurations of full-size models, as data, with their numbers of parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Network:
    """One network: its class, configuration, parameters in millions, and stored type ("F16" or "BF16")."""

    class_name: str
    millions: float
    config: Mapping[str, Any]
    dtype: str = "F16"


@dataclass(frozen=True)
class Stand:
    """One model: pipeline class, networks by folder, scheduler, further entries of model_index.json.

    pads: padding tokens of tokenizers that do not pad with the end of the text.
    """

    pipeline: str
    networks: Mapping[str, Network]
    scheduler: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    pads: Mapping[str, str] = field(default_factory=dict)


def _clip(class_name: str, millions: float, hidden: int, layers: int, heads: int, **more: Any) -> Network:
    config = {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": hidden,
        "hidden_act": "gelu",
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    }
    return Network(class_name, millions, config | more)


CLIP_L = _clip("CLIPTextModel", 123.06, 768, 12, 12, hidden_act="quick_gelu")
CLIP_L_PROJECTION = _clip("CLIPTextModelWithProjection", 123.65, 768, 12, 12, hidden_act="quick_gelu")
CLIP_H = _clip("CLIPTextModel", 340.39, 1024, 23, 16, projection_dim=512)
CLIP_G = _clip("CLIPTextModelWithProjection", 694.66, 1280, 32, 20)
T5 = Network(
    "T5EncoderModel",
    4762.31,
    {
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": False,
    },
)


def _unet(millions: float, **config: Any) -> Network:
    common = {"in_channels": 4, "out_channels": 4, "layers_per_block": 2, "norm_num_groups": 32}
    return Network("UNet2DConditionModel", millions, common | config)


SD_BLOCKS = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}
XL_BLOCKS = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD15_UNET = _unet(859.52, sample_size=64, cross_attention_dim=768, attention_head_dim=8, **SD_BLOCKS)
SD21_UNET = _unet(
    865.91,
    sample_size=96,
    cross_attention_dim=1024,
    attention_head_dim=(5, 10, 20, 20),
    use_linear_projection=True,
    upcast_attention=True,
    **SD_BLOCKS,
)
SDXL_UNET = _unet(2567.46, transformer_layers_per_block=(1, 2, 10), **XL_BLOCKS)
# Depths that give Vega's published 745 M: no transformer in the middle, 1 and 2 layers below.
VEGA_UNET = _unet(
    745.23,
    transformer_layers_per_block=(1, 1, 2),
    reverse_transformer_layers_per_block=((2, 2, 2), (1, 1, 1), 1),
    mid_block_type="UNetMidBlock2D",
    **XL_BLOCKS,
)
REFINER_UNET = _unet(
    2259.53,
    sample_size=128,
    block_out_channels=(384, 768, 1536, 1536),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=4,
    attention_head_dim=(6, 12, 24, 24),
    cross_attention_dim=1280,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2560,
)


def _mmdit(millions: float, layers: int, table: int, dtype: str = "F16", **config: Any) -> Network:
    common = {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": layers,
        "attention_head_dim": 64,
        "num_attention_heads": layers,
        "caption_projection_dim": layers * 64,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": table,
    }
    return Network("SD3Transformer2DModel", millions, common | config, dtype)


def _vae(millions: float, **config: Any) -> Network:
    common = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
    }
    return Network("AutoencoderKL", millions, common | config)


SD_VAE = _vae(83.65, scaling_factor=0.18215, sample_size=512)
XL_VAE = _vae(83.65, scaling_factor=0.13025, sample_size=1024, force_upcast=True)
SD3_VAE = _vae(
    83.82,
    latent_channels=16,
    scaling_factor=1.5305,
    shift_factor=0.0609,
    use_quant_conv=False,
    use_post_quant_conv=False,
    sample_size=1024,
    force_upcast=True,
)

BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
SD_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    **BETAS,
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
V_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    **BETAS,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
}
XL_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    **BETAS,
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
FLOW_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
XL_OPTIONS = {"force_zeros_for_empty_prompt": True}
SD_OPTIONS = {"safety_checker": [None, None], "feature_extractor": [None, None]}


def _sd3(transformer: Network) -> Stand:
    return Stand(
        "StableDiffusion3Pipeline",
        {
            "text_encoder": CLIP_L_PROJECTION,
            "text_encoder_2": CLIP_G,
            "text_encoder_3": T5,
            "transformer": transformer,
            "vae": SD3_VAE,
        },
        FLOW_SCHEDULER,
        pads={"tokenizer_2": "!"},
    )


def _sdxl(unet: Network) -> Stand:
    return Stand(
        "StableDiffusionXLPipeline",
        {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "unet": unet, "vae": XL_VAE},
        XL_SCHEDULER,
        XL_OPTIONS,
        pads={"tokenizer_2": "!"},
    )


MODELS: dict[str, Stand] = {
    "sd15": Stand(
        "StableDiffusionPipeline",
        {"text_encoder": CLIP_L, "unet": SD15_UNET, "vae": SD_VAE},
        SD_SCHEDULER,
        SD_OPTIONS,
    ),
    "sd21": Stand(
        "StableDiffusionPipeline",
        {"text_encoder": CLIP_H, "unet": SD21_UNET, "vae": SD_VAE},
        V_SCHEDULER,
        SD_OPTIONS,
        pads={"tokenizer": "!"},
    ),
    "sdxl": _sdxl(SDXL_UNET),
    "sdxl-refiner": Stand(
        "StableDiffusionXLImg2ImgPipeline",
        {"text_encoder_2": CLIP_G, "unet": REFINER_UNET, "vae": XL_VAE},
        XL_SCHEDULER,
        {
            "text_encoder": [None, None],
            "tokenizer": [None, None],
            "requires_aesthetics_score": True,
            "force_zeros_for_empty_prompt": False,
        },
        pads={"tokenizer_2": "!"},
    ),
    "vega": _sdxl(VEGA_UNET),
    "sd3-medium": _sd3(_mmdit(2028.33, 24, 192)),
    "sd35-medium": _sd3(
        _mmdit(2243.17, 24, 384, "BF16", qk_norm="rms_norm", dual_attention_layers=tuple(range(13)))
    ),
    "sd35-large": _sd3(_mmdit(8056.63, 38, 192, "BF16", qk_norm="rms_norm")),
}
