"""Tensors of the original layouts by diffusers' and transformers' names, and in their shapes."""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..lora.original import Original, originals
from ..tensors import Stored
from ..weights import build
from .sections import Section

if TYPE_CHECKING:
    import torch

Tensors = dict[str, Stored]
ALIKE = {"pos_embed.pos_embed": "pos_embed"}  # a table, not a module
VAE_NAMES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
        (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
        (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
        (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
        (r"\.nin_shortcut\.", ".conv_shortcut."),
        (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
        (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
        (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
        (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
        (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
        (r"^(\w+)\.norm_out\.", r"\1.conv_norm_out."),
    )
)
UP = re.compile(r"(?<=^decoder\.up_blocks\.)\d+")
OPEN_CLIP_NAMES = (
    (re.compile(r"^transformer\.resblocks\.(\d+)\."), r"text_model.encoder.layers.\1."),
    (re.compile(r"\.ln_([12])\."), r".layer_norm\1."),
    (re.compile(r"\.mlp\.c_fc\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.c_proj\."), ".mlp.fc2."),
    (re.compile(r"\.attn\."), ".self_attn."),
    (re.compile(r"^ln_final\."), "text_model.final_layer_norm."),
    (re.compile(r"^token_embedding\."), "text_model.embeddings.token_embedding."),
    (re.compile(r"^positional_embedding$"), "text_model.embeddings.position_embedding.weight"),
    (re.compile(r"^text_projection$"), "text_projection.weight"),
)
IN_PROJECTION = re.compile(r"(.+)\.in_proj_(weight|bias)")


def denoiser_tensors(section: Section, class_name: str, config: Mapping[str, Any]) -> Tensors:
    """A denoiser's tensors by diffusers' names; those that are not known keep theirs."""
    names = _places(class_name, config)
    paths = {name.rpartition(".")[0] for name in names}
    known = originals(class_name, paths)
    found: Tensors = {}
    used = set()
    for name in names:
        path, _, leaf = name.rpartition(".")
        original = known.get(path)
        key = ALIKE.get(name, "") if original is None else f"{original.name}.{leaf}"
        if key in section.tensors:
            found[name] = _piece(section.tensors[key], original)
            used.add(key)
    return found | {name: stored for name, stored in section.tensors.items() if name not in used}


def vae_tensors(section: Section) -> Tensors:
    """An autoencoder's tensors by diffusers' names, which it may have already."""
    if any(name.startswith("encoder.down_blocks.") for name in section.tensors):
        return dict(section.tensors)
    renamed = {_renamed(name, VAE_NAMES): stored for name, stored in section.tensors.items()}
    top = max((int(match[0]) for match in map(UP.search, renamed) if match), default=0)
    tensors = {}
    for name, stored in renamed.items():
        # The original counts the decoder's blocks from the picture, diffusers from the latents.
        place = UP.sub(lambda match: str(top - int(match[0])), name)
        tensors[place] = _matrix(stored) if ".attentions.0.to_" in place else stored
    return tensors


def clip_tensors(section: Section) -> Tensors:
    """A CLIP text encoder's tensors by transformers' names, which it may have already."""
    if section.kind == "clip":
        return dict(section.tensors)
    tensors: Tensors = {}
    for name, stored in section.tensors.items():
        match = IN_PROJECTION.fullmatch(name)
        if match is None:
            place = _renamed(name, OPEN_CLIP_NAMES)
            tensors[place] = _transposed(stored) if place == "text_projection.weight" else stored
            continue
        attention = _renamed(f"{match[1]}.", OPEN_CLIP_NAMES)
        for third, projection in enumerate(("q_proj", "k_proj", "v_proj")):
            tensors[f"{attention}{projection}.{match[2]}"] = _third(stored, third)
    return tensors


def identity_projection(tensors: Mapping[str, Stored]) -> Stored:
    """A projection that changes nothing, where a file leaves it out, in the type of the norm before it."""
    norm = next(stored for name, stored in tensors.items() if name.endswith("final_layer_norm.weight"))
    (width,) = norm.shape
    return norm.changed((width, width), lambda weight: weight.new_ones(width).diag())


def _places(class_name: str, config: Mapping[str, Any]) -> list[str]:
    """The names of a denoiser's tensors, from a module without memory."""
    import torch

    with torch.device("meta"):
        return list(build(class_name, config).state_dict())


def _piece(stored: Stored, original: Original | None) -> Stored:
    if original is None:
        return stored
    if original.third is not None:
        return _third(stored, original.third)
    return _halves_swapped(stored) if original.swapped else stored


def _third(stored: Stored, third: int) -> Stored:
    rows = stored.shape[0] // 3
    return stored.changed((rows, *stored.shape[1:]), _rows(third * rows, rows))


def _rows(start: int, rows: int) -> Callable[["torch.Tensor"], "torch.Tensor"]:
    return lambda tensor: tensor[start : start + rows]


def _halves_swapped(stored: Stored) -> Stored:
    half = stored.shape[0] // 2
    return stored.changed(stored.shape, lambda tensor: tensor.roll(half, 0))


def _matrix(stored: Stored) -> Stored:
    """A 1x1 convolution's weight as a linear layer's."""
    shape = stored.shape[:2]
    return stored if len(stored.shape) < 3 else stored.changed(shape, lambda tensor: tensor.reshape(shape))


def _transposed(stored: Stored) -> Stored:
    return stored.changed(stored.shape[::-1], lambda tensor: tensor.T.contiguous())


def _renamed(name: str, patterns: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in patterns:
        name = pattern.sub(replacement, name)
    return name
