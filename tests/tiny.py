"""Small random checkpoints in the diffusers layout, one for each architecture that tests need."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

torch.set_num_threads(1)  # more threads only wait for one another on models this small

CLIP_TOKENS = 16
T5_TOKENS = 24
WORDS = ("a", "red", "apple", "green", "house", "cat", "smiling", "face", "noto", "of")
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NAMES = ("sd", "sd-v", "sdxl", "sd3", "sd3-no-t5", "sd35")
FROM_PICTURES = ("sd-inpaint", "refiner")
CONSISTENT = ("lcm", "lcm-xl")
GUIDANCE_WIDTH = 16


def make(name: str, folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write the tiny checkpoint `name` (of the tuples above) to `folder` and return the folder."""
    torch.manual_seed((*NAMES, *FROM_PICTURES, *CONSISTENT).index(name))
    if name in ("sd", "sd-v"):
        pipe = _sd(folder, v_prediction=name == "sd-v")
    elif name == "sdxl":
        pipe = _sdxl(folder)
    elif name == "refiner":
        pipe = _refiner(folder)
    elif name in CONSISTENT:
        pipe = _lcm(_sdxl(folder) if name == "lcm-xl" else _sd(folder, v_prediction=False))
    elif name == "sd-inpaint":
        pipe = _inpaint(folder)
    else:
        pipe = _sd3(folder, with_t5=name != "sd3-no-t5", sd35=name == "sd35")
    pipe.to(dtype).save_pretrained(folder, safe_serialization=True)
    if name == "sd3-no-t5":
        set_index(folder, t5_tokens=CLIP_TOKENS)  # as many zeros as OpenVINO GenAI puts there
    return folder


def set_index(folder: Path, **values: object) -> None:
    """Add or replace keys of a checkpoint's model_index.json."""
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}, indent=2))


def _sd(folder: Path, *, v_prediction: bool) -> StableDiffusionPipeline:
    prediction = "v_prediction" if v_prediction else "epsilon"
    scheduler = (
        DDIMScheduler(
            **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction
        )
        if v_prediction
        else PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)
    )
    tokenizer = clip_tokenizer(folder)
    return StableDiffusionPipeline(
        vae=_vae(latent_channels=4, scaling_factor=0.18215),
        text_encoder=CLIPTextModel(_clip_config(tokenizer, hidden=32)),
        tokenizer=tokenizer,
        unet=_unet(cross_attention_dim=32, use_linear_projection=v_prediction),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(folder: Path) -> StableDiffusionXLPipeline:
    tokenizer, tokenizer_2 = clip_tokenizer(folder), clip_tokenizer(folder, pad="!")
    return StableDiffusionXLPipeline(
        vae=_vae(latent_channels=4, scaling_factor=0.13025),
        text_encoder=CLIPTextModel(_clip_config(tokenizer, hidden=32)),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config(tokenizer_2, hidden=48, act="gelu")),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=_unet(
            cross_attention_dim=80,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=48 + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def _refiner(folder: Path) -> StableDiffusionXLImg2ImgPipeline:
    tokenizer_2 = clip_tokenizer(folder, pad="!")
    torch.manual_seed(NAMES.index("sdxl"))  # the base model's autoencoder, which is drawn first
    return StableDiffusionXLImg2ImgPipeline(
        vae=_vae(latent_channels=4, scaling_factor=0.13025),
        text_encoder=None,
        text_encoder_2=CLIPTextModelWithProjection(_clip_config(tokenizer_2, hidden=48, act="gelu")),
        tokenizer=None,
        tokenizer_2=tokenizer_2,
        unet=_unet(
            cross_attention_dim=48,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=48 + 5 * 8,
        ),
        scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def _lcm(
    pipe: StableDiffusionPipeline | StableDiffusionXLPipeline,
) -> LatentConsistencyModelPipeline | StableDiffusionXLPipeline:
    """With another UNet, which takes the guidance as an input, and heeds it more than one drawn at random."""
    unet = UNet2DConditionModel.from_config(pipe.unet.config, time_cond_proj_dim=GUIDANCE_WIDTH)
    unet.time_embedding.cond_proj.weight.data.mul_(10)
    pipe.register_modules(unet=unet, scheduler=LCMScheduler(**BETAS))
    if isinstance(pipe, StableDiffusionXLPipeline):
        return pipe
    return LatentConsistencyModelPipeline(**pipe.components, requires_safety_checker=False)


def _inpaint(folder: Path) -> StableDiffusionInpaintPipeline:
    tokenizer = clip_tokenizer(folder)
    return StableDiffusionInpaintPipeline(
        vae=_vae(latent_channels=4, scaling_factor=0.18215),
        text_encoder=CLIPTextModel(_clip_config(tokenizer, hidden=32)),
        tokenizer=tokenizer,
        unet=_unet(cross_attention_dim=32, in_channels=9),
        scheduler=DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd3(folder: Path, *, with_t5: bool, sd35: bool) -> StableDiffusion3Pipeline:
    tokenizer, tokenizer_2 = clip_tokenizer(folder), clip_tokenizer(folder, pad="!")
    tokenizer_3 = t5_tokenizer() if with_t5 else None
    text_encoder_3 = None
    if tokenizer_3 is not None:
        text_encoder_3 = T5EncoderModel(
            T5Config(
                vocab_size=len(tokenizer_3),
                d_model=96,
                d_kv=16,
                d_ff=64,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
            )
        )
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=96,
        caption_projection_dim=64,
        pooled_projection_dim=80,
        pos_embed_max_size=12,
        qk_norm="rms_norm" if sd35 else None,
        dual_attention_layers=(0,) if sd35 else (),
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, quant_convs=False),
        text_encoder=CLIPTextModelWithProjection(_clip_config(tokenizer, hidden=32)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(_clip_config(tokenizer_2, hidden=48, act="gelu")),
        tokenizer_2=tokenizer_2,
        text_encoder_3=text_encoder_3,
        tokenizer_3=tokenizer_3,
    )


def clip_tokenizer(folder: Path, *, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """A byte-level CLIP tokenizer that knows WORDS and otherwise spells."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["!", *(c for c in alphabet if c != "!"), *(f"{c}</w>" for c in alphabet)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
            tokens.append(pieces[0])
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    files = folder / "vocabulary"
    files.mkdir(parents=True, exist_ok=True)
    (files / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (files / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in dict.fromkeys(merges)) + "\n"
    )
    tokenizer = CLIPTokenizer.from_pretrained(files, model_max_length=CLIP_TOKENS, pad_token=pad)
    for path in files.iterdir():
        path.unlink()
    files.rmdir()
    return tokenizer


def t5_tokenizer() -> T5TokenizerFast:
    """A unigram T5 tokenizer of single letters and WORDS."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [("▁", -4.0), *((letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz.,!")]
    pieces += [(f"▁{word}", -2.0) for word in WORDS if len(word) > 1]
    core = Tokenizer(models.Unigram(pieces, unk_id=2))
    core.normalizer = normalizers.Replace(" {2,}", " ")
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    core.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return T5TokenizerFast(tokenizer_object=core, model_max_length=T5_TOKENS, extra_ids=0)


def _clip_config(tokenizer: CLIPTokenizer, *, hidden: int, act: str = "quick_gelu") -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=CLIP_TOKENS,
        hidden_act=act,
        projection_dim=hidden,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _unet(**options: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=options.pop("in_channels", 4),
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **options,
    )


def _vae(
    *,
    latent_channels: int,
    scaling_factor: float,
    shift_factor: float | None = None,
    quant_convs: bool = True,
) -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=64,
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=latent_channels,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=quant_convs,
        use_post_quant_conv=quant_convs,
    )
