"""Where a LoRA's layers belong: modules of a checkpoint by every name that LoRA files have for them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..checkpoints import Checkpoint, Part
from ..weights import spellings
from .formats import PEFT
from .original import originals

# Prefixes of kohya's (underscores), diffusers', PEFT's and ComfyUI's names; None means the denoiser.
PREFIXES: Mapping[str, str | None] = {
    "lora_unet_": None,
    "lora_transformer_": None,
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "unet.": "unet",
    "transformer.": "transformer",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
    "diffusion_model.": None,
    PEFT: None,
}


@dataclass(frozen=True)
class Place:
    """A module that (a part of) a LoRA layer belongs to.

    shape: of its weight. third: which third of the LoRA's outputs, where the original layout has query, key
    and value in one. swapped: whether the original layout has shift before scale.
    """

    path: str
    shape: tuple[int, ...]
    third: int | None = None
    swapped: bool = False

    @property
    def outputs(self) -> int:
        """Rows that the LoRA's up matrix has for all places of its layer."""
        return self.shape[0] * (1 if self.third is None else 3)

    def rows(self, up: torch.Tensor) -> torch.Tensor:
        """This place's rows of an up matrix [outputs, rank, ...]."""
        if self.third is not None:
            return up.chunk(3)[self.third]
        return torch.cat(up.chunk(2)[::-1]) if self.swapped else up


class Places:
    """Places of a checkpoint by part and name with underscores for dots, looked up part by part."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.parts: dict[str, dict[str, list[Place]]] = {}

    def find(self, part: str, path: str) -> list[Place]:
        """The places of a layer, none where the checkpoint does not have it."""
        if part not in self.checkpoint.parts:
            return []
        if part not in self.parts:
            self.parts[part] = _index(self.checkpoint.parts[part])
        return self.parts[part].get(underscored(path), [])


def locate(name: str, denoiser: str) -> tuple[str, str]:
    """The part that a layer belongs to and its path in there; names without a part mean the denoiser."""
    for prefix, part in PREFIXES.items():
        if name.startswith(prefix):
            return part or denoiser, name.removeprefix(prefix)
    return denoiser, name


def underscored(path: str) -> str:
    """A module's path as kohya's names have it."""
    return path.replace(".", "_")


def weight_shapes(part: Part) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that a LoRA may change, by module path."""
    shapes = {name: stored.shape for name, stored in part.tensors.items() if name.endswith(".weight")}
    return {name.removesuffix(".weight"): shape for name, shape in shapes.items() if len(shape) in (2, 4)}


def _index(part: Part) -> dict[str, list[Place]]:
    shapes = weight_shapes(part)
    index: dict[str, list[Place]] = {}
    for path, shape in shapes.items():
        for name in spellings(path) if part.class_name.startswith("CLIP") else (path,):
            index[underscored(name)] = [Place(path, shape)]
    for path, (name, third, swapped) in originals(part.class_name, shapes).items():
        if underscored(name) != underscored(path):
            index.setdefault(underscored(name), []).append(Place(path, shapes[path], third, swapped))
    return index
