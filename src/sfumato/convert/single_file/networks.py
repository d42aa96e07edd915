"""Configurations of the other networks, from the names and shapes of their tensors."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import CheckpointError
from ..tensors import Stored
from .sections import Section

HEAD_WIDTH = 64  # of every attention layer in CLIP and the MMDiT
END_OF_TEXT = 49407  # CLIP's last token, where none were added
Json = dict[str, Any]


def mmdit_config(section: Section) -> Json:
    """What diffusers' SD3Transformer2DModel is made with (Esser et al. 2024)."""
    width, channels, patch, _ = section.shape("x_embedder.proj.weight")
    layers = count(section.tensors, r"joint_blocks\.(\d+)\.")
    dual = [n for n in range(layers) if f"joint_blocks.{n}.x_block.attn2.qkv.weight" in section.tensors]
    normed = "joint_blocks.0.x_block.attn.ln_q.weight" in section.tensors
    return {
        "_class_name": "SD3Transformer2DModel",
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": section.shape("final_layer.linear.weight")[0] // patch**2,
        "num_layers": layers,
        "attention_head_dim": HEAD_WIDTH,
        "num_attention_heads": width // HEAD_WIDTH,
        "caption_projection_dim": section.shape("context_embedder.weight")[0],
        "joint_attention_dim": section.shape("context_embedder.weight")[1],
        "pooled_projection_dim": section.shape("y_embedder.mlp.0.weight")[1],
        "pos_embed_max_size": math.isqrt(section.shape("pos_embed")[1]),
        "qk_norm": "rms_norm" if normed else None,
        "dual_attention_layers": dual,
    }


def vae_config(section: Section, tensors: Mapping[str, Stored]) -> Json:
    """What diffusers' AutoencoderKL is made with. tensors: by diffusers' names."""

    def shape(name: str) -> tuple[int, ...]:
        return _shape(section, tensors, name)

    levels = count(tensors, r"encoder\.down_blocks\.(\d+)\.")
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": shape("encoder.conv_in.weight")[1],
        "out_channels": shape("decoder.conv_out.weight")[0],
        "latent_channels": shape("decoder.conv_in.weight")[1],
        "block_out_channels": [
            shape(f"encoder.down_blocks.{n}.resnets.0.conv1.weight")[0] for n in range(levels)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": count(tensors, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
    }


def clip_config(section: Section, tensors: Mapping[str, Stored], *, activation: str) -> Json:
    """What transformers' CLIP text models are made with. tensors: by their names."""
    start = "text_model." if any(name.startswith("text_model.") for name in tensors) else ""

    def shape(name: str) -> tuple[int, ...]:
        return _shape(section, tensors, start + name)

    vocabulary, width = shape("embeddings.token_embedding.weight")
    projection = tensors.get("text_projection.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shape("encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": count(tensors, rf"{re.escape(start)}encoder\.layers\.(\d+)\."),
        "num_attention_heads": width // HEAD_WIDTH,
        "max_position_embeddings": shape("embeddings.position_embedding.weight")[0],
        "projection_dim": width if projection is None else projection.shape[0],
        "hidden_act": activation,
        "bos_token_id": min(END_OF_TEXT, vocabulary - 1) - 1,
        "eos_token_id": min(END_OF_TEXT, vocabulary - 1),
    }


def t5_config(section: Section) -> Json:
    """What transformers' T5EncoderModel is made with, for T5 1.1 (gated GELU, separate heads)."""
    attention = "encoder.block.0.layer.0.SelfAttention"
    buckets, heads = section.shape(f"{attention}.relative_attention_bias.weight")
    vocabulary, width = section.shape("shared.weight")
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": section.shape(f"{attention}.q.weight")[0] // heads,
        "d_ff": section.shape("encoder.block.0.layer.1.DenseReluDense.wi_0.weight")[0],
        "num_layers": count(section.tensors, r"encoder\.block\.(\d+)\."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": False,
    }


def count(names: Iterable[str], pattern: str) -> int:
    """How many numbers the names have at the pattern's group."""
    matches = (re.match(pattern, name) for name in names)
    return len({match[1] for match in matches if match})


def _shape(section: Section, tensors: Mapping[str, Stored], name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"{section.source}: {name} is missing; download the file again")
    return tensors[name].shape
