"""A UNet's configuration, from the names and shapes of its tensors in the original layout."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import Any

from ...errors import CheckpointError
from .sections import Section

HEADS = 8  # of every attention layer in Stable Diffusion 1
HEAD_WIDTH = 64  # of all later ones
TIME_WIDTH = 256  # of each of SDXL's sizes, as sinusoids
LAYER = re.compile(r"(\w+_blocks?\.\d+)\.(?:\d+\.)?transformer_blocks\.(\d+)\.norm1\.weight")
SAMPLERS = ("0.op.weight", "1.conv.weight", "2.conv.weight")
Level = list[tuple[int, int]]
"""The layers at one resolution: channels, and transformer blocks after the residual one."""


def unet_config(section: Section) -> dict[str, Any]:
    """What diffusers' UNet2DConditionModel is made with. Raises CheckpointError where it has no such form."""
    depths = _depths(section)
    down = _levels(section, "input_blocks", depths, start=1)
    up = _levels(section, "output_blocks", depths, start=0)
    channels = [level[0][0] for level in down]
    attend = [any(depth for _, depth in level) for level in down]
    up_attend = [any(depth for _, depth in level) for level in up]
    first = next((f"{each}.1" for each in depths if each != "middle_block.1"), None)
    if first is None:
        raise CheckpointError(f"{section.source}: the UNet has no cross-attention, so no prompt can guide it")
    linear = len(section.shape(f"{first}.proj_in.weight")) == 2
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": section.shape("input_blocks.0.0.weight")[1],
        "out_channels": section.shape("out.2.weight")[0],
        "block_out_channels": channels,
        "layers_per_block": _plain([len(level) for level in down]),
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attend],
        "up_block_types": ["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in up_attend],
        "cross_attention_dim": section.shape(f"{first}.transformer_blocks.0.attn2.to_k.weight")[1],
        "attention_head_dim": [width // HEAD_WIDTH for width in channels] if linear else HEADS,
        "use_linear_projection": linear,
        **_middle(section),
        **_transformers(section, down, up, depths.get("middle_block.1", 0)),
        **_sizes(section),
    }


def _depths(section: Section) -> dict[str, int]:
    """How many transformer blocks each layer has that has any."""
    return dict(Counter(match[1] for match in map(LAYER.fullmatch, section.tensors) if match))


def _levels(section: Section, side: str, depths: dict[str, int], *, start: int) -> list[Level]:
    """The layers of one side by resolution; a sampler ends each but the last."""
    levels: list[Level] = [[]]
    for number in count(start):
        layer = f"{side}.{number}"
        name = f"{layer}.0.in_layers.2.weight"
        if name in section.tensors:
            levels[-1].append((section.shape(name)[0], depths.get(layer, 0)))
        if any(f"{layer}.{sampler}" in section.tensors for sampler in SAMPLERS):
            levels.append([])
        elif name not in section.tensors:
            break
    if not all(levels):
        raise CheckpointError(
            f"{section.source}: {section.prefix}{side} have no residual layers at some resolution; "
            "supported are the UNets of Stable Diffusion 1, 2 and XL"
        )
    return levels


def _middle(section: Section) -> dict[str, Any]:
    if "middle_block.1.norm.weight" in section.tensors:
        return {}
    alone = "middle_block.0.in_layers.2.weight" in section.tensors
    return {"mid_block_type": "UNetMidBlock2D" if alone else None}


def _transformers(section: Section, down: list[Level], up: list[Level], middle: int) -> dict[str, Any]:
    """How many transformer blocks there are; diffusers says it upwards only where it is no mirror image."""
    below = [[depth for _, depth in level] for level in down]
    above = [[depth for _, depth in level] for level in up]
    used = {depth for level in (*below, *above) for depth in level} - {0}
    if used | ({middle} - {0}) == {min(used)}:
        return {"transformer_layers_per_block": min(used)}
    layers = [_plain([depth or 1 for depth in level]) for level in below]
    if middle not in (0, layers[-1]):
        raise CheckpointError(
            f"{section.source}: {middle} transformer blocks in the middle of the UNet and {layers[-1]} "
            "before it; diffusers has no such model"
        )
    reverse = [_plain([depth or 1 for depth in level]) for level in above]
    if reverse == layers[::-1]:
        return {"transformer_layers_per_block": layers}
    return {"transformer_layers_per_block": layers, "reverse_transformer_layers_per_block": reverse}


def _sizes(section: Section) -> dict[str, Any]:
    """SDXL's further inputs: pooled text and the picture's sizes."""
    if "label_emb.0.0.weight" not in section.tensors:
        return {}
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_WIDTH,
        "projection_class_embeddings_input_dim": section.shape("label_emb.0.0.weight")[1],
    }


def _plain(values: Sequence[int]) -> int | list[int]:
    """One number where all are the same."""
    return values[0] if len(set(values)) == 1 else list(values)
