"""Fusing LoRA files (Hu et al. 2021, arXiv 2106.09685) in PEFT's and diffusers' formats into weights."""

import fnmatch
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError
from .checkpoints import Checkpoint, Part
from .checks import PICKLE, PICKLES

PEFT = "base_model.model."
SAMPLING = "sfumato.sampling"
DOWN = re.compile(r"\.(lora_A(\.default)?|lora\.down|lora_down|lora_linear_layer\.down)\.weight$")
UP = re.compile(r"\.(lora_B(\.default)?|lora\.up|lora_up|lora_linear_layer\.up)\.weight$")
ALPHA = re.compile(r"(\.lora)?\.alpha$")
UNET_PATHS = (
    "down_blocks.",
    "mid_block.",
    "up_blocks.",
    "conv_in",
    "conv_out",
    "time_embedding.",
    "add_embedding.",
)
MMDIT_PATHS = (
    "transformer_blocks.",
    "pos_embed.",
    "time_text_embed.",
    "context_embedder",
    "norm_out.",
    "proj_out",
)
DENOISERS = ("unet", "transformer")
CONTEXT_WIDTHS = {768: "sd", 1024: "sd", 1280: "sdxl", 2048: "sdxl"}


@dataclass(frozen=True)
class Layer:
    """One low-rank change: weight += scale * up @ down.

    down: [rank, inputs (, height, width)]; up: [outputs, rank (, 1, 1)].
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float


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

    def fuse(self, part: str, module: torch.nn.Module) -> None:
        """Add this file's changes to the weights of one part, in float32, kept in the weights' own type."""
        for path, layer in self.layers.get(part, {}).items():
            weight = _submodule(module, path).weight
            change = layer.up.float().flatten(1) @ layer.down.float().flatten(1)
            fused = weight.data.float() + layer.scale * change.reshape(weight.shape)
            weight.data = fused.to(weight.dtype)


def read_lora(file: Path, scale: float, checkpoint: Checkpoint) -> Lora:
    """Read a LoRA file and find the layer that each of its tensors belongs to.

    scale: strength on top of the file's own alpha/rank. Raises CheckpointError where the file cannot be read,
    was made for another family, or names layers that the checkpoint does not have.
    """
    if not math.isfinite(scale):
        raise CheckpointError(f"{file}: LoRA scale {scale} must be a finite number")
    tensors, metadata = _read(file)
    pairs, alphas = _pair(file, tensors)
    denoiser = checkpoint.family.denoiser
    _check_family(file, _made_for(pairs, denoiser), checkpoint.family.name)
    scaling = _Scaling(file, metadata, peft=any(name.startswith(PEFT) for name in pairs))
    layers: dict[str, dict[str, Layer]] = {}
    unknown: list[str] = []
    for name, (down, up) in pairs.items():
        part_name, path = _locate(name, denoiser)
        part = checkpoint.parts.get(part_name)
        shape = _weight_shape(part, path) if part else None
        if shape is None:
            unknown.append(name)
            continue
        _check_shape(file, name, shape, down, up)
        factor = scale * scaling.of(name, path, part_name, down.shape[0], alphas.get(name))
        layers.setdefault(part_name, {})[path] = Layer(down, up, factor)
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise CheckpointError(
            f"{file}: LoRA layers that the checkpoint does not have: {', '.join(sorted(unknown)[:3])}{more}; "
            "it was made for another model"
        )
    return Lora(file, scale, layers, _sampling(file, metadata))


def _sampling(file: Path, metadata: Mapping[str, str]) -> Mapping[str, Any] | None:
    if SAMPLING not in metadata:
        return None
    try:
        value = json.loads(metadata[SAMPLING])
    except ValueError as error:
        raise CheckpointError(f"{file}: {SAMPLING} in its metadata is damaged ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: {SAMPLING} in its metadata must be an object, not {value!r}")
    return value


class _Scaling:
    """alpha/rank of each layer, from alpha tensors, PEFT's adapter_config.json, or diffusers' metadata."""

    def __init__(self, file: Path, metadata: Mapping[str, str], *, peft: bool) -> None:
        self.configs: dict[str, Any] = {}
        if peft:
            self.configs[PEFT] = _adapter_config(file)
        else:
            stored = json.loads(metadata.get("lora_adapter_metadata", "{}"))
            for key, value in stored.items():
                part, _, field = key.partition(".")
                self.configs.setdefault(part, {})[field] = value

    def of(self, name: str, path: str, part: str, rank: int, alpha: float | None) -> float:
        if alpha is not None:
            return alpha / rank
        config = self.configs.get(PEFT if name.startswith(PEFT) else part)
        if config is None:
            return 1.0
        alpha = float(_matching(config.get("alpha_pattern"), path) or config.get("lora_alpha", rank))
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _read(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if file.suffix in PICKLES:
        raise CheckpointError(f"{file}: {PICKLE}; get the LoRA's safetensors version")
    try:
        with safe_open(file, "pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            return tensors, opened.metadata() or {}
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such LoRA file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: LoRA cannot be read as safetensors ({error})") from error


def _pair(
    file: Path, tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], dict[str, float]]:
    """Tensors sorted into (down, up) by layer name, and the alphas."""
    downs = {DOWN.sub("", key): value for key, value in tensors.items() if DOWN.search(key)}
    ups = {UP.sub("", key): value for key, value in tensors.items() if UP.search(key)}
    alphas = {ALPHA.sub("", key): float(value) for key, value in tensors.items() if ALPHA.search(key)}
    odd = [key for key in tensors if not (DOWN.search(key) or UP.search(key) or ALPHA.search(key))]
    odd += sorted(set(downs) ^ set(ups)) + sorted(set(alphas) - set(downs))
    if any(key.startswith(("lora_unet_", "lora_te", "lora_transformer_")) for key in tensors):
        raise CheckpointError(
            f"{file}: kohya's LoRA format is not supported; use the diffusers or PEFT format"
        )
    if odd or not downs:
        shown = ", ".join(sorted(odd)[:3]) or "no tensors"
        raise CheckpointError(f"{file}: not a LoRA in PEFT's or diffusers' format ({shown})")
    return {name: (down, ups[name]) for name, down in downs.items()}, alphas


def _locate(name: str, denoiser: str) -> tuple[str, str]:
    """The part a layer belongs to and its path in there; names without a part mean the denoiser."""
    if name.startswith(PEFT):
        return denoiser, name.removeprefix(PEFT)
    part, _, path = name.partition(".")
    if part in (*DENOISERS, "text_encoder", "text_encoder_2", "text_encoder_3"):
        return part, path
    return denoiser, name


def _made_for(pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]], denoiser: str) -> str | None:
    """What the layers' names and widths give away: sd3, sd, sdxl, `unet` (one of these two), or nothing."""
    found = set()
    for name, (down, _) in pairs.items():
        part, path = _locate(name, denoiser)
        if part == "text_encoder_3" or (part in DENOISERS and path.startswith(MMDIT_PATHS)):
            return "sd3"
        if part in DENOISERS and path.startswith(UNET_PATHS):
            found.add("unet")
            if path.endswith("attn2.to_k") and down.shape[1] in CONTEXT_WIDTHS:
                return CONTEXT_WIDTHS[down.shape[1]]
        elif part == "text_encoder_2":
            found.add("second encoder")
    if found == {"unet", "second encoder"}:
        return "sdxl"
    return "unet" if "unet" in found else None


def _check_family(file: Path, made_for: str | None, family: str) -> None:
    if made_for in (None, family) or (made_for == "unet" and family in ("sd", "sdxl")):
        return
    described = "a UNet (sd or sdxl)" if made_for == "unet" else made_for
    raise CheckpointError(f"{file}: the LoRA was made for {described}, this checkpoint is {family}")


def _weight_shape(part: Part, path: str) -> tuple[int, ...] | None:
    for name in _spellings(path):
        for file in part.weights:
            with safe_open(file, "np") as opened:
                if f"{name}.weight" in opened.keys():  # noqa: SIM118
                    return tuple(opened.get_slice(f"{name}.weight").get_shape())
    return None


def _check_shape(file: Path, name: str, shape: tuple[int, ...], down: torch.Tensor, up: torch.Tensor) -> None:
    fits = down.shape[0] == up[0].numel() and up.shape[0] == shape[0]
    if not fits or down[0].numel() != math.prod(shape[1:]):
        raise CheckpointError(
            f"{file}: LoRA layer {name} is {tuple(up.shape)} x {tuple(down.shape)} where the "
            f"checkpoint's weight is {shape}; it was made for another model"
        )


def _spellings(path: str) -> Iterator[str]:
    # transformers 5 dropped CLIPTextModel's inner `text_model`, LoRA files and checkpoints may have it.
    yield path
    yield path.removeprefix("text_model.") if path.startswith("text_model.") else f"text_model.{path}"


def _submodule(module: torch.nn.Module, path: str) -> Any:
    modules = dict(module.named_modules())
    return next(modules[name] for name in _spellings(path) if name in modules)


def _adapter_config(file: Path) -> dict[str, Any]:
    path = file.parent / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{file}: PEFT's adapter_config.json must lie beside it; it says how strong the LoRA is"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(config, dict) or config.get("use_dora"):
        raise CheckpointError(f"{path}: not a plain LoRA's configuration (DoRA is not supported)")
    return config


def _matching(patterns: Mapping[str, Any] | None, path: str) -> Any:
    for pattern, value in (patterns or {}).items():
        if path == pattern or path.endswith(f".{pattern}") or fnmatch.fnmatch(path, pattern):
            return value
    return None
