"""A LoRA matched to a checkpoint, and its addition to the weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError
from ..checkpoints import Checkpoint
from ..weights import spellings
from .metadata import SAMPLING


@dataclass(frozen=True)
class Layer:
    """One low-rank change: weight += scale * up @ down.

    down: [rank, inputs (, height, width)]; up: [outputs, rank (, 1, 1)]. Where `mid` [rank, rank, height,
    width] is given, down is [rank, inputs, 1, 1] and the change is a convolution's Tucker decomposition
    (Yeh et al. 2023, arXiv 2309.14859).
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    mid: torch.Tensor | None = None

    def change(self, shape: torch.Size) -> torch.Tensor:
        """What is added to a weight of this shape, float32."""
        down, up = self.down.float().flatten(1), self.up.float().flatten(1)
        if self.mid is None:
            product = up @ down
        else:
            product = torch.einsum("or,rshw,si->oihw", up, self.mid.float(), down)
        return self.scale * product.reshape(shape)


@dataclass(frozen=True)
class Lora:
    """A LoRA file matched to a checkpoint: its layers by part and module path, with the strength applied.

    sampling: where a distillation wrote the file, how its few-step model is sampled: "scheduler" (changes of
        the checkpoint's scheduler_config), "steps" and "guidance".
    """

    file: Path
    scale: float
    layers: Mapping[str, Mapping[str, Layer]]
    sampling: Mapping[str, Any] | None = None

    def sampled(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with this file's sampling in place of its own; raises CheckpointError."""
        if self.sampling is None:
            return checkpoint
        try:
            scheduler = {**checkpoint.scheduler, **self.sampling["scheduler"]}
            defaults = {"steps": self.sampling["steps"], "guidance": self.sampling["guidance"]}
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{self.file}: {SAMPLING} in its metadata is damaged ({error})") from error
        entry = ["diffusers", scheduler.get("_class_name")]
        index = {**checkpoint.index, "scheduler": entry, "defaults": defaults}
        return replace(checkpoint, scheduler=scheduler, index=index)


def fuse_all(loras: Sequence[Lora], part: str, module: torch.nn.Module) -> None:
    """Add the changes of all LoRAs to the weights of one part.

    The sum is taken in float32 and rounded once to the weights' own type. Raises CheckpointError where that
    type cannot hold it.
    """
    layers: dict[str, list[Layer]] = {}
    for lora in loras:
        for path, layer in lora.layers.get(part, {}).items():
            layers.setdefault(path, []).append(layer)
    modules = dict(module.named_modules()) if layers else {}
    for path, changes in layers.items():
        weight = next(modules[name] for name in spellings(path) if name in modules).weight
        total = weight.data.float()
        for layer in changes:
            total = total + layer.change(weight.shape)
        weight.data = total.to(weight.dtype)
        if not weight.data.isfinite().all():
            files = ", ".join(str(lora.file) for lora in loras)
            raise CheckpointError(
                f"{files}: fused, {part} {path} is too large for {weight.dtype}; use a smaller LoRA scale"
            )
