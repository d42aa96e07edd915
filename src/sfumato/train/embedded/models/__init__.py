"""The embedded models' architectures, by name."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from transformers.utils.logging import disable_progress_bar

from sfumato.errors import InvalidRequest
from sfumato.files import write_errors
from sfumato.train.embedded.models.base import SMALL, EmbeddedModel, Examples, Texts
from sfumato.train.embedded.models.sd3 import Mini
from sfumato.train.embedded.models.unet import MiniSd, MiniVega, MiniXl, MiniXlRefiner

__all__ = ["MODELS", "SMALL", "EmbeddedModel", "Examples", "MiniVega", "Texts", "known", "save", "start_from"]

MODELS: dict[str, type[EmbeddedModel]] = {
    "mini": Mini,
    "mini-sd": MiniSd,
    "mini-xl": MiniXl,
    "mini-xl-refiner": MiniXlRefiner,
    "mini-vega": MiniVega,
}


def known(name: str) -> type[EmbeddedModel]:
    """The class of the embedded model `name`; InvalidRequest where there is none."""
    if name not in MODELS:
        raise InvalidRequest(f"unknown embedded model {name!r}; known: {', '.join(MODELS)}")
    return MODELS[name]


@torch.no_grad()
def start_from(model: EmbeddedModel, checkpoint: Path) -> float:
    """Copy every tensor that `checkpoint` (a diffusers folder) has under the same component, name and shape.

    Returns the share of the model's weights that were found. Raises InvalidRequest where there are none.
    """
    found = total = 0
    for component, module in model.components().items():
        tensors = {}
        for file in sorted((checkpoint / component).glob("*.safetensors")):
            tensors.update({_plain(name): tensor for name, tensor in load_file(file).items()})
        for name, p in module.named_parameters():
            total += p.numel()
            tensor = tensors.get(_plain(name))
            if tensor is not None and tensor.shape == p.shape:
                p.copy_(tensor)
                found += p.numel()
    if not found:
        raise InvalidRequest(
            f"{checkpoint} has no weights for this model: a checkpoint folder of the same kind is needed"
        )
    return found / total


def _plain(name: str) -> str:
    """CLIP's encoders with and without a projection name the same weights differently."""
    return name.removeprefix("text_model.")


def save(model: EmbeddedModel, vae: AutoencoderKL, folder: Path) -> None:
    """Write the diffusers folder of `model`, weights as fp16 safetensors."""
    disable_progress_bar()
    try:
        vae.half()
        for module in model.components().values():
            module.half()
        with write_errors(folder):
            model.pipeline(vae).save_pretrained(folder)
    finally:
        model.float()
        vae.float()
