"""What a checkpoint's configuration files say about its latents, sampling and conditioning."""

from typing import Any, cast, get_args

from pydantic import ValidationError

from ..errors import CheckpointError
from ..families import ConditioningSettings, Family
from ..manifest import Captions, LatentSpace, Sampling
from ..runtime.samplers import sampler_for

# (steps, guidance) of models distilled to few steps, which their samplers give away.
FEW_STEPS = {"lcm": (4, 1.0), "flow-renoise": (4, 0.0)}
# Of latent consistency models that take the guidance as an input; as in diffusers' pipeline of them.
EMBEDDED_GUIDANCE = 8.5
T5_TOKENS = 256
PREDICTIONS = ("epsilon", "v_prediction")
Json = dict[str, Any]


def latent_space(family: Family, denoiser: Json, vae: Json) -> LatentSpace:
    """Channels, scale and sizes; the default size is what the denoiser was trained at."""
    factor = vae_factor(vae)
    positions = denoiser.get("pos_embed_max_size")
    multiple = family.size_multiple * factor // 8
    side = denoiser.get("sample_size") or 64
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return LatentSpace(
        channels=vae["latent_channels"],
        factor=factor,
        scale=vae["scaling_factor"],
        shift=vae.get("shift_factor") or 0.0,
        size_multiple=multiple,
        default_size=(_round_down(width * factor, multiple), _round_down(height * factor, multiple)),
        largest_side=factor * denoiser["patch_size"] * positions if positions else None,
    )


def vae_factor(vae: Json) -> int:
    """Pixels to a side of a latent."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def takes_mask(denoiser: Json, vae: Json) -> bool:
    """Whether a denoiser takes a mask and the masked picture's latents (inpainting) besides the latents.

    Raises CheckpointError for one that takes something else.
    """
    channels, latents = denoiser["in_channels"], vae["latent_channels"]
    if channels not in (latents, 2 * latents + 1):
        raise CheckpointError(
            f"the denoiser takes {channels} channels; supported are those of the {latents} latents, and "
            f"{2 * latents + 1} for inpainting"
        )
    return bool(channels != latents)


def sampling(family: Family, scheduler: Json, index: Json, denoiser: Json) -> Sampling:
    """The checkpoint's scheduler as one of our samplers; `lcm` for a denoiser that takes the guidance.

    Steps and guidance are those of `defaults` in model_index.json, else the sampler's or family's usual ones.
    """
    class_name = str(scheduler.get("_class_name"))
    config = {key: value for key, value in scheduler.items() if not key.startswith("_")}
    flow = class_name.startswith("FlowMatch")
    prediction = "flow" if flow else config.get("prediction_type", "epsilon")
    if not flow and prediction not in PREDICTIONS:
        raise CheckpointError(f"scheduler predicts {prediction!r}; supported are {', '.join(PREDICTIONS)}")
    embedded = guidance_embedding_dim(denoiser) is not None
    sampler = "lcm" if embedded else sampler_for(class_name, config)
    steps, guidance = FEW_STEPS.get(sampler, (family.steps, family.guidance))
    guidance = EMBEDDED_GUIDANCE if embedded else guidance
    own = index.get("defaults", {})
    try:
        return Sampling(
            sampler=sampler,
            prediction=cast(Any, prediction),
            steps=own.get("steps", steps),
            guidance=own.get("guidance", guidance),
            scheduler=config,
        )
    except (ValidationError, AttributeError) as error:
        raise CheckpointError(
            f"model_index.json: defaults {own!r} must be like {{'steps': 20, 'guidance': 4.0}}"
        ) from error


def captions(index: Json) -> Captions:
    """Which of the captions that ship suit the model: `captions` of model_index.json, else "general"."""
    given = index.get("captions", "general")
    if given not in get_args(Captions):
        raise CheckpointError(
            f"model_index.json: captions {given!r} must be one of {', '.join(get_args(Captions))}"
        )
    return cast(Captions, given)


def conditioning(index: Json, denoiser: Json, t5_limit: int | None) -> ConditioningSettings:
    """Settings of the prompt's encoding. t5_limit: the T5 tokenizer's own longest input, if it has one."""
    joint = denoiser.get("joint_attention_dim")
    return ConditioningSettings(
        aesthetic_score=bool(index.get("requires_aesthetics_score", False)),
        zero_empty_negative=bool(index.get("force_zeros_for_empty_prompt", False)),
        t5_tokens=None if joint is None else _t5_tokens(index, t5_limit),
        joint_attention_dim=joint,
        guidance_embedding_dim=guidance_embedding_dim(denoiser),
    )


def guidance_embedding_dim(denoiser: Json) -> int | None:
    """Width of the embedded guidance scale that a denoiser takes (Luo et al. 2023); None: it takes none."""
    return denoiser.get("time_cond_proj_dim")


def _t5_tokens(index: Json, limit: int | None) -> int:
    """`t5_tokens` of model_index.json, else diffusers' 256 or fewer where the tokenizer stops earlier."""
    given = index.get("t5_tokens")
    if given is None:
        return min(T5_TOKENS, limit or T5_TOKENS)
    if not isinstance(given, int) or not 1 <= given <= 512:
        raise CheckpointError(f"model_index.json: t5_tokens {given!r} must be a number from 1 to 512")
    return given


def _round_down(pixels: int, multiple: int) -> int:
    return max(multiple, pixels // multiple * multiple)
