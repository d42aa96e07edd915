"""Names of the denoisers' modules in the layouts that they were published in, from those in diffusers'."""

import re
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple


class Original(NamedTuple):
    """A module's name in the original layout, and what of that module's outputs it is.

    third: 0, 1 or 2 where query, key and value are one module. swapped: shift comes before scale.
    """

    name: str
    third: int | None = None
    swapped: bool = False


UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_PATH = re.compile(r"(down|mid|up)_blocks?(?:\.(\d{1,4}))?\.(\w+)\.(\d{1,4})\.(.+)")

MMDIT_PATH = re.compile(r"transformer_blocks\.(\d{1,4})\.(.+)")
MMDIT_ENDS = {
    "pos_embed.proj": "x_embedder.proj",
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "proj_out": "final_layer.linear",
}
MMDIT_BLOCK = {
    "attn.to_q": Original("x_block.attn.qkv", 0),
    "attn.to_k": Original("x_block.attn.qkv", 1),
    "attn.to_v": Original("x_block.attn.qkv", 2),
    "attn.norm_q": Original("x_block.attn.ln_q"),
    "attn.norm_k": Original("x_block.attn.ln_k"),
    "attn.to_out.0": Original("x_block.attn.proj"),
    "attn.add_q_proj": Original("context_block.attn.qkv", 0),
    "attn.add_k_proj": Original("context_block.attn.qkv", 1),
    "attn.add_v_proj": Original("context_block.attn.qkv", 2),
    "attn.norm_added_q": Original("context_block.attn.ln_q"),
    "attn.norm_added_k": Original("context_block.attn.ln_k"),
    "attn.to_add_out": Original("context_block.attn.proj"),
    "attn2.to_q": Original("x_block.attn2.qkv", 0),
    "attn2.to_k": Original("x_block.attn2.qkv", 1),
    "attn2.to_v": Original("x_block.attn2.qkv", 2),
    "attn2.norm_q": Original("x_block.attn2.ln_q"),
    "attn2.norm_k": Original("x_block.attn2.ln_k"),
    "attn2.to_out.0": Original("x_block.attn2.proj"),
    "ff.net.0.proj": Original("x_block.mlp.fc1"),
    "ff.net.2": Original("x_block.mlp.fc2"),
    "ff_context.net.0.proj": Original("context_block.mlp.fc1"),
    "ff_context.net.2": Original("context_block.mlp.fc2"),
    "norm1.linear": Original("x_block.adaLN_modulation.1"),
    "norm1_context.linear": Original("context_block.adaLN_modulation.1"),
}


def originals(class_name: str, paths: Collection[str]) -> dict[str, Original]:
    """The modules of a network by their path in diffusers; none for classes whose names stayed the same."""
    if class_name == "UNet2DConditionModel":
        return {path: Original(name) for path, name in unet_originals(paths).items()}
    return mmdit_originals(paths) if class_name == "SD3Transformer2DModel" else {}


def unet_originals(paths: Collection[str]) -> dict[str, str]:
    """Names in the original ("LDM") layout of a UNet's modules, by their path.

    There, the layers of all blocks are numbered through, downsamplers among them.
    """
    down, up = _numbers("down", paths, start=1, sampler=1), _numbers("up", paths, start=0, sampler=0)
    names = {path: UNET_ENDS[path] for path in paths if path in UNET_ENDS}
    for path in paths:
        match = UNET_PATH.fullmatch(path)
        if match is None:
            continue
        side, block, kind, number, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
        rest = RESNET.get(rest, rest) if kind == "resnets" else rest
        column = 1 if kind == "attentions" else 0
        if side == "mid":
            names[path] = f"middle_block.{2 * number + column}.{rest}"
        elif kind == "downsamplers" and block in down:
            names[path] = f"input_blocks.{down[block][-1]}.0.op"
        elif kind == "upsamplers" and block in up:
            attends = any(other.startswith(f"up_blocks.{block}.attentions.") for other in paths)
            names[path] = f"output_blocks.{up[block][-1]}.{2 if attends else 1}.conv"
        elif side == "down" and number in range(len(down.get(block, ()))):
            names[path] = f"input_blocks.{down[block][number]}.{column}.{rest}"
        elif side == "up" and number in range(len(up.get(block, ()))):
            names[path] = f"output_blocks.{up[block][number]}.{column}.{rest}"
    return names


def _numbers(side: str, paths: Collection[str], *, start: int, sampler: int) -> dict[int, range]:
    """The numbers of a side's layers by block. sampler: how many numbers its up- or downsampler takes."""
    matches = [match for match in map(UNET_PATH.fullmatch, paths) if match and match[1] == side]
    found = {(int(match[2] or 0), match[4]) for match in matches if match[3] == "resnets"}
    numbers: dict[int, range] = {}
    for block, resnets in sorted(Counter(block for block, _ in found).items()):
        numbers[block] = range(start, start + resnets + sampler)
        start = numbers[block].stop
    return numbers


def mmdit_originals(paths: Collection[str]) -> dict[str, Original]:
    """Names in the original layout of an SD3 transformer's modules, by their path."""
    names = {path: Original(MMDIT_ENDS[path]) for path in paths if path in MMDIT_ENDS}
    if "norm_out.linear" in paths:
        names["norm_out.linear"] = Original("final_layer.adaLN_modulation.1", swapped=True)
    blocks = {path: match for path in paths if (match := MMDIT_PATH.fullmatch(path))}
    last = max((int(match[1]) for match in blocks.values()), default=0)
    for path, match in blocks.items():
        if match[2] in MMDIT_BLOCK:
            name, third, _ = MMDIT_BLOCK[match[2]]
            # The last context has no gate: diffusers' AdaLayerNormContinuous has scale before shift.
            swapped = match[2] == "norm1_context.linear" and int(match[1]) == last
            names[path] = Original(f"joint_blocks.{match[1]}.{name}", third, swapped)
    return names
