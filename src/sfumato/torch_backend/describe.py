"""What a checkpoint is, for tables: family, precision, bytes and defaults."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

from ..compare.records import Model
from ..convert.checkpoints import Checkpoint, Part
from ..convert.defaults import sampling
from ..convert.tensors import Stored
from ..manifest import LatentSpace
from .source import TorchSource

DECODER = ("decoder.", "post_quant_conv.")
"""What the tensors of a VAE's decoder begin with."""
PRECISIONS = {"F16": "fp16", "BF16": "bf16", "F32": "fp32"}


def described(
    checkpoint: Checkpoint, space: LatentSpace, source: TorchSource, name: str, held: Mapping[str, int]
) -> Model:
    """What a checkpoint is, before anything is measured.

    held: bytes of the networks that were quantized, by component. Precision and bytes of all others are
    those on the disk.
    """
    denoiser = checkpoint.parts[checkpoint.family.denoiser]
    sampler = sampling(checkpoint.family, checkpoint.scheduler, checkpoint.index, denoiser.config)
    stored = _precision(denoiser)
    return Model(
        name=name,
        source=f"torch:{source}",
        kind="torch",
        family=checkpoint.family.name,
        precision=stored if source.quant == "none" else source.quant,
        components=_component_bytes(checkpoint) | dict(held),
        disk_bytes=_disk_bytes(checkpoint),
        size=space.default_size,
        steps=sampler.steps,
        guidance=sampler.guidance,
        latent_channels=space.channels,
    )


def _precision(part: Part) -> str:
    """How most of a part's weights are stored: "fp16", "bf16" or "fp32"."""
    weights: Counter[str] = Counter()
    for tensor in part.tensors.values():
        weights[tensor.dtype] += math.prod(tensor.shape)
    most = weights.most_common(1)[0][0]
    return PRECISIONS.get(most, most)


def _component_bytes(checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes of weights by component; the VAE's two halves apart, as in model folders."""
    found = {}
    for component in checkpoint.components:
        tensors = checkpoint.part_of(component).tensors
        if component.kind in ("vae_encoder", "vae_decoder"):
            wanted = component.kind == "vae_decoder"
            tensors = {name: each for name, each in tensors.items() if name.startswith(DECODER) == wanted}
        found[component.name] = sum(map(_bytes, tensors.values()))
    return found


def _bytes(tensor: Stored) -> int:
    bits = re.search("[0-9]+", tensor.dtype)  # "BF16", "F8_E4M3"; a BOOL takes a byte
    return math.prod(tensor.shape) * (int(bits[0]) if bits else 8) // 8


def _disk_bytes(checkpoint: Checkpoint) -> int:
    """The weights that are read, and the tokenizers."""
    files = {file for part in checkpoint.parts.values() for file in part.files}
    for tokenizer in checkpoint.tokenizers.values():
        files |= set(tokenizer.folder.iterdir())
    total = 0
    for file in files:
        with suppress(OSError):
            total += file.stat().st_size
    return total
