"""What a LoRA file's metadata says: the strength of its layers, the base model, how it is sampled."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from .formats import PEFT

SAMPLING = "sfumato.sampling"
ADAPTER = "lora_adapter_metadata"
BASE_MODEL = ("modelspec.architecture", "ss_base_model_version")


class Strength:
    """alpha/rank of each layer, from alpha tensors, PEFT's adapter_config.json, or diffusers' metadata."""

    def __init__(self, file: Path, metadata: Mapping[str, str], *, peft: bool) -> None:
        self.file = file
        self.configs: dict[str, Any] = {}
        if peft:
            self.configs[PEFT] = _adapter_config(file)
        for key, value in metadata_object(file, metadata, ADAPTER).items():
            part, _, field = key.partition(".")
            self.configs.setdefault(part, {})[field] = value

    def of(self, name: str, path: str, part: str, rank: int, alpha: float | None) -> float:
        """The factor of one layer; 1.0 where the file says nothing. Raises CheckpointError."""
        if alpha is not None:
            return alpha / rank
        config = self.configs.get(PEFT if name.startswith(PEFT) else part)
        if config is None:
            return 1.0
        try:
            alpha = float(_matching(config.get("alpha_pattern"), path) or config.get("lora_alpha", rank))
        except (TypeError, ValueError, AttributeError, re.error) as error:
            raise CheckpointError(f"{self.file}: its lora_alpha cannot be used ({error})") from error
        if not math.isfinite(alpha):
            raise CheckpointError(f"{self.file}: its lora_alpha {alpha} must be a finite number")
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def metadata_object(file: Path, metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """A JSON object in a file's metadata, empty where there is none. Raises CheckpointError."""
    try:
        value = json.loads(metadata.get(key, "{}"))
    except ValueError as error:
        raise CheckpointError(f"{file}: {key} in its metadata is damaged ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: {key} in its metadata must be an object, not {value!r}")
    return value


def base_model(metadata: Mapping[str, str]) -> str:
    """What the metadata names as the model that the file was trained on, as the end of a sentence."""
    named = next((metadata[key] for key in BASE_MODEL if metadata.get(key)), None)
    return f" (its metadata says {named})" if named else ""


def _adapter_config(file: Path) -> dict[str, Any]:
    path = file.parent / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{file}: PEFT's adapter_config.json must lie beside it; it says how strong the LoRA is"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(config, dict) or config.get("use_dora"):
        raise CheckpointError(f"{path}: not a plain LoRA's configuration (DoRA is not supported)")
    return config


def _matching(patterns: Mapping[str, Any] | None, path: str) -> Any:
    """PEFT's rule: a pattern is a regular expression for the end of a module's path."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return None
