"""LoRA files as layers by name, whichever of the usual formats they are in."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ...errors import CheckpointError
from ..checks import PICKLE, PICKLES

PEFT = "base_model.model."
FIRST_GENERATION = re.compile(r"(\w+):(\d{1,5}):(up|down)")
ROLES = (
    ("down", re.compile(r"\.(lora_A(\.\w+)?|lora\.down|lora_down|lora_linear_layer\.down)\.weight$")),
    ("up", re.compile(r"\.(lora_B(\.\w+)?|lora\.up|lora_up|lora_linear_layer\.up)\.weight$")),
    ("mid", re.compile(r"\.lora_mid\.weight$")),
    ("alpha", re.compile(r"(\.lora)?\.alpha$")),
)
# diffusers before 0.20 kept LoRA layers in attention processors.
PROCESSOR = re.compile(r"(.+?)(?:\.processor)?\.to_(q|k|v|out)_lora\.(down|up)\.weight")
OTHER_KINDS = (
    ("DoRA", re.compile(r"\.dora_scale$|\.lora_magnitude_vector")),
    ("LoHa", re.compile(r"\.hada_[wt]\d")),
    ("LoKr", re.compile(r"\.lokr_[wt]\d")),
    ("BOFT", re.compile(r"\.boft_")),
    ("OFT", re.compile(r"\.oft_")),
    ("GLoRA", re.compile(r"\.[ab][12]\.weight$|\.bm[12]\.weight$")),
    ("(IA)^3", re.compile(r"\.on_input$|\.ia3_l")),
    ("VeRA", re.compile(r"\.vera_")),
    ("full-rank difference", re.compile(r"\.diff(_b)?$|\.[wb]_norm$")),
    ("embedding LoRA", re.compile(r"\.lora_embedding_[AB]")),
    ("textual inversion", re.compile(r"^bundle_emb\.|(^|\.)emb_params$")),
)


@dataclass(frozen=True)
class RawLayer:
    """A layer as stored. down: [rank, ...]; up: [outputs, rank, ...]; mid: [rank, rank, ...]."""

    down: torch.Tensor
    up: torch.Tensor
    mid: torch.Tensor | None = None
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """Number of rows that the input is projected to."""
        return int(self.down.shape[0])


def read_tensors(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a LoRA file.

    Raises CheckpointError for pickles, files that are damaged, other kinds of adapters (by their tensors'
    names, before any is loaded), and values that are not finite.
    """
    if file.suffix in PICKLES:
        raise CheckpointError(f"{file}: {PICKLE}; get the LoRA's safetensors version")
    try:
        with safe_open(file, "pt") as opened:
            keys = sorted(opened.keys())
            check_kind(file, keys)
            tensors = {key: opened.get_tensor(key) for key in keys}
            metadata = dict(opened.metadata() or {})
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such LoRA file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: LoRA cannot be read as safetensors ({error})") from error
    for key, tensor in tensors.items():
        if not tensor.float().isfinite().all():
            raise CheckpointError(
                f"{file}: LoRA tensor {key} has values that are not finite; its training failed"
            )
    return tensors, metadata


def check_kind(file: Path, keys: Iterable[str]) -> None:
    """Raise CheckpointError for tensors of an adapter that is no LoRA, or a file that is none at all."""
    odd = []
    for key in keys:
        for kind, pattern in OTHER_KINDS:
            if pattern.search(key):
                raise CheckpointError(
                    f"{file}: holds {kind} weights ({key}), which cannot be fused; use a LoRA or LoCon file"
                )
        if not (FIRST_GENERATION.fullmatch(key) or _role(key)):
            odd.append(key)
    if odd:
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise CheckpointError(f"{file}: tensors that belong to no LoRA layer: {', '.join(odd[:3])}{more}")


def pair(file: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, RawLayer]:
    """Layers by name from tensors in kohya's, PEFT's or diffusers' format.

    Raises CheckpointError for layers with a half missing, twice there, or of impossible shapes.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, role = _role(key) or (key, "")
        if role in found.setdefault(name, {}):
            raise CheckpointError(f"{file}: LoRA layer {name} is there twice; the file holds several LoRAs")
        found[name][role] = tensor
    halves = [name for name, roles in found.items() if not {"down", "up"} <= roles.keys()]
    if halves or not found:
        shown = ", ".join(sorted(halves)[:3]) or "no tensors"
        raise CheckpointError(f"{file}: LoRA layers that are not complete, with down and up: {shown}")
    return {name: raw_layer(file, name, **roles) for name, roles in found.items()}


def raw_layer(
    file: Path,
    name: str,
    *,
    down: torch.Tensor,
    up: torch.Tensor,
    mid: torch.Tensor | None = None,
    alpha: torch.Tensor | None = None,
) -> RawLayer:
    """A layer whose tensors fit each other; raises CheckpointError naming it where they don't."""
    given = [each for each in (down, up, mid) if each is not None]
    fits = all(each.ndim in (2, 4) and each.numel() and each.is_floating_point() for each in given)
    fits = fits and down.shape[0] == up[0].numel() and (alpha is None or alpha.numel() == 1)
    if mid is not None:
        fits = fits and mid.ndim == 4 and tuple(mid.shape[:2]) == (up[0].numel(), down.shape[0])
    if not fits:
        shapes = " x ".join(str(tuple(each.shape)) for each in (up, mid, down) if each is not None)
        raise CheckpointError(f"{file}: LoRA layer {name} of {shapes} has no rank; the file is damaged")
    return RawLayer(down, up, mid, None if alpha is None else float(alpha))


def _role(key: str) -> tuple[str, str] | None:
    """The layer that a tensor belongs to and what it is there: down, up, mid or alpha."""
    if old := PROCESSOR.fullmatch(key):
        owner, projection, role = old.groups()
        if owner.endswith("self_attn"):
            return f"{owner}.{projection}_proj", role
        return f"{owner}.to_{projection}" + (".0" if projection == "out" else ""), role
    for role, pattern in ROLES:
        if pattern.search(key):
            return pattern.sub("", key), role
    return None
