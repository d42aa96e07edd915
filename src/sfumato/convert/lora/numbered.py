"""The first LoRA format for diffusion models (github.com/cloneofsimo/lora): layers have numbers for names."""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch

from ...errors import CheckpointError
from ..checkpoints import Checkpoint
from .formats import FIRST_GENERATION, RawLayer, raw_layer
from .places import weight_shapes

UNET_BLOCK = re.compile(r"((?:down|mid|up)_blocks?\..*transformer_blocks\.\d+)\.attn1\.to_q")
CLIP_BLOCK = re.compile(r"(.*layers\.\d+\.self_attn)\.q_proj")
# Modules stand in the order in which diffusers' UNet made them: the middle block last, and the feed-forward
# between the attentions until diffusers 0.17. The shapes say which of the two it was.
ATTENTIONS = ("CrossAttention", "Attention")
ORDERS = (("attn1", "ff", "attn2"), ("attn1", "attn2", "ff"))
SIDES = ("down", "up", "mid")


def is_numbered(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the tensors are called like `unet:0:up`."""
    return any(FIRST_GENERATION.fullmatch(key) for key in tensors)


def named_layers(
    file: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], checkpoint: Checkpoint
) -> dict[str, RawLayer]:
    """Layers with diffusers' names, for the checkpoint's modules in the order that the numbers follow.

    The metadata names the classes of the modules that were trained. Raises CheckpointError where they or the
    shapes are not those of this checkpoint.
    """
    layers: dict[str, RawLayer] = {}
    for part, numbered in _numbered(file, tensors).items():
        if part not in checkpoint.parts:
            raise CheckpointError(
                f"{file}: LoRA layers for {part}, which this {checkpoint.family.name} checkpoint has not"
            )
        shapes = weight_shapes(checkpoint.parts[part])
        targets = _targets(file, part, metadata)
        for order in _orders(part, shapes, targets):
            if len(order) == len(numbered) and all(
                shapes.get(path) == (layer.up.shape[0], layer.down.shape[1])
                for path, layer in zip(order, numbered, strict=True)
            ):
                layers |= {f"{part}.{path}": layer for path, layer in zip(order, numbered, strict=True)}
                break
        else:
            raise CheckpointError(
                f"{file}: its {len(numbered)} numbered layers for {part} ({', '.join(sorted(targets))}) are "
                "not those of this checkpoint; it was made for another model"
            )
    return layers


def _numbered(file: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, list[RawLayer]]:
    halves: dict[str, dict[int, dict[str, torch.Tensor]]] = {}
    for key, tensor in tensors.items():
        match = FIRST_GENERATION.fullmatch(key)
        if match is None:
            raise CheckpointError(f"{file}: {key} among numbered LoRA layers; the file is damaged")
        halves.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = tensor
    numbered: dict[str, list[RawLayer]] = {}
    for part, found in halves.items():
        for number in range(len(found)):
            if found.get(number, {}).keys() != {"up", "down"}:
                raise CheckpointError(f"{file}: LoRA layer {part}:{number} is not complete, with up and down")
        numbered[part] = [raw_layer(file, f"{part}:{n}", **found[n]) for n in range(len(found))]
    return numbered


def _targets(file: Path, part: str, metadata: Mapping[str, str]) -> set[str]:
    known = {"CLIPAttention"} if part.startswith("text_encoder") else {*ATTENTIONS, "GEGLU"}
    try:
        targets = {str(each) for each in json.loads(metadata[part])}
    except (KeyError, ValueError, TypeError):
        targets = set()
    if not targets or not targets <= known:
        raise CheckpointError(
            f"{file}: its metadata must say which modules its numbered layers for {part} are, of "
            f"{', '.join(sorted(known))}; it says {metadata.get(part)!r}"
        )
    return targets


def _orders(part: str, paths: Collection[str], targets: set[str]) -> Iterator[list[str]]:
    if part.startswith("text_encoder"):
        blocks = sorted((match[1] for match in map(CLIP_BLOCK.fullmatch, paths) if match), key=_natural)
        yield [f"{block}.{way}_proj" for block in blocks for way in ("k", "v", "q", "out")]
        return
    blocks = sorted((match[1] for match in map(UNET_BLOCK.fullmatch, paths) if match), key=_natural)
    blocks.sort(key=lambda block: SIDES.index(block.partition("_")[0]))
    projections = ("to_q", "to_k", "to_v", "to_out.0") if targets & set(ATTENTIONS) else ()
    inner = {name: [f"{name}.{each}" for each in projections] for name in ("attn1", "attn2")}
    inner["ff"] = ["ff.net.0.proj"] if "GEGLU" in targets else []
    for order in ORDERS:
        yield [f"{block}.{name}" for block in blocks for each in order for name in inner[each]]


def _natural(path: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path)]
