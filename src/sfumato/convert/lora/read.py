"""Reading one LoRA file for one checkpoint."""

import math
from collections.abc import Mapping
from pathlib import Path

from ...errors import CheckpointError
from ..checkpoints import Checkpoint
from .family import check_family
from .formats import PEFT, RawLayer, pair, read_tensors
from .fuse import Layer, Lora
from .metadata import SAMPLING, Strength, base_model, metadata_object
from .numbered import is_numbered, named_layers
from .places import Place, Places, locate


def read_lora(file: Path, scale: float, checkpoint: Checkpoint) -> Lora:
    """Read a LoRA file and find the layer that each of its tensors belongs to.

    The file is a safetensors file with the names of kohya's sd-scripts (for diffusers' or the original layout
    of the denoiser), of diffusers, of PEFT (with adapter_config.json beside it), of ComfyUI, or with the
    numbered layers of the first LoRAs. scale: strength on top of the file's own alpha/rank. Raises
    CheckpointError where the file cannot be read, was made for another family, or has tensors that the
    checkpoint has no place for.
    """
    if not math.isfinite(scale):
        raise CheckpointError(f"{file}: LoRA scale {scale} must be a finite number")
    tensors, metadata = read_tensors(file)
    numbered = is_numbered(tensors)
    raw = named_layers(file, tensors, metadata, checkpoint) if numbered else pair(file, tensors)
    stated = base_model(metadata)
    denoiser = checkpoint.family.denoiser
    check_family(file, raw, denoiser, checkpoint.family.name, stated)
    placed = _place(file, raw, checkpoint, stated)
    strength = Strength(file, metadata, peft=any(name.startswith(PEFT) for name in raw))
    layers: dict[str, dict[str, Layer]] = {}
    taken: dict[tuple[str, str], str] = {}
    for name, places in placed.items():
        layer, (part, _) = raw[name], locate(name, denoiser)
        for place in places:
            if other := taken.get((part, place.path)):
                raise CheckpointError(f"{file}: {other} and {name} are the same layer, {part} {place.path}")
            taken[part, place.path] = name
            factor = scale * strength.of(name, place.path, part, layer.rank, layer.alpha)
            change = Layer(layer.down, place.rows(layer.up), factor, layer.mid)
            layers.setdefault(part, {})[place.path] = change
    sampling = metadata_object(file, metadata, SAMPLING) if SAMPLING in metadata else None
    return Lora(file, scale, layers, sampling)


def _place(
    file: Path, raw: Mapping[str, RawLayer], checkpoint: Checkpoint, stated: str
) -> dict[str, list[Place]]:
    """The places of all layers; raises CheckpointError for those without one, or with one of other shape."""
    index = Places(checkpoint)
    placed = {name: index.find(*locate(name, checkpoint.family.denoiser)) for name in raw}
    missing = sorted(name for name, places in placed.items() if not places)
    absent = {locate(name, checkpoint.family.denoiser)[0] for name in missing} - checkpoint.parts.keys()
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        reason = f"it has no {', '.join(sorted(absent))}" if absent else "it was made for another model"
        raise CheckpointError(
            f"{file}: LoRA layers that the checkpoint does not have: {', '.join(missing[:3])}{more}; "
            f"{reason}{stated}"
        )
    for name, places in placed.items():
        for place in places:
            if not _fits(raw[name], place):
                raise CheckpointError(
                    f"{file}: LoRA layer {name} is {tuple(raw[name].up.shape)} x "
                    f"{tuple(raw[name].down.shape)} where the checkpoint's weight is {place.shape}; it was "
                    f"made for another model{stated}"
                )
    return placed


def _fits(layer: RawLayer, place: Place) -> bool:
    kernel = math.prod(layer.mid.shape[2:]) if layer.mid is not None else 1
    inputs = layer.down[0].numel() * kernel
    return bool(layer.up.shape[0] == place.outputs and inputs == math.prod(place.shape[1:]))
