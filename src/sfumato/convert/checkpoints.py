"""Reading a diffusers folder: its family, its parts and their files, checked before anything is loaded."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..families import FAMILIES, Component, Family
from .weights import find_weights

CLASSES = {
    "clip": "CLIPTextModel",
    "clip_projection": "CLIPTextModelWithProjection",
    "t5": "T5EncoderModel",
    "unet": "UNet2DConditionModel",
    "mmdit": "SD3Transformer2DModel",
    "vae_encoder": "AutoencoderKL",
    "vae_decoder": "AutoencoderKL",
}
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")
Json = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One trained network of a checkpoint: folder, class to instantiate, configuration and weight files."""

    name: str
    class_name: str
    folder: Path
    config: Json
    weights: tuple[Path, ...]
    variant: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A diffusers folder whose parts were found and checked.

    components: those of the family that are present. parts: the networks by folder name (`vae` serves both
    `vae_encoder` and `vae_decoder`). tokenizers: class name by folder name.
    """

    folder: Path
    family: Family
    index: Json
    components: tuple[Component, ...]
    parts: dict[str, Part]
    tokenizers: dict[str, str]
    scheduler: Json

    def part_of(self, component: Component) -> Part:
        """The network that a component is exported from."""
        return self.parts[_part_name(component)]


def open_checkpoint(folder: Path, *, without_t5: bool = False) -> Checkpoint:
    """Find and check every part of a diffusers folder; loads no weights, runs no code from it.

    Raises CheckpointError naming the first part that is missing, damaged, unsafe or of an unknown class.
    """
    index = read_json(folder / "model_index.json", folder)
    family = _family(folder, index)
    components = tuple(
        component
        for component in family.components
        if not (without_t5 and component.kind == "t5") and _present(folder, index, component)
    )
    parts: dict[str, Part] = {}
    for component in components:
        name = _part_name(component)
        if name not in parts:
            parts[name] = _part(folder, index, name, CLASSES[component.kind])
    tokenizers = {
        component.tokenizer: _tokenizer(folder, index, component.tokenizer)
        for component in components
        if component.tokenizer
    }
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", folder)
    return Checkpoint(folder, family, index, components, parts, tokenizers, scheduler)


def read_json(path: Path, root: Path) -> Json:
    """A JSON object from a file inside `root`. Raises CheckpointError."""
    inside(path, root)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; a checkpoint in diffusers layout has this file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__} where an object is expected")
    if "auto_map" in value:
        raise CheckpointError(
            f"{path}: `auto_map` asks for code from the checkpoint, which is never run; "
            "use a checkpoint made of the standard classes"
        )
    return value


def inside(path: Path, root: Path) -> Path:
    """`path`, if it leads to a place inside `root` (or the Hub cache's blobs that belong to it)."""
    resolved, home = path.resolve(), root.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(resolved.is_relative_to(place) for place in homes):
        raise CheckpointError(
            f"{path}: leads out of the checkpoint, to {resolved}; copy the file itself there"
        )
    return path


def _family(folder: Path, index: Json) -> Family:
    name = index.get("_class_name")
    for family in FAMILIES.values():
        if family.pipeline_class == name:
            return family
    known = ", ".join(family.pipeline_class for family in FAMILIES.values())
    raise CheckpointError(f"{folder}: pipeline class {name!r} is not supported; supported are {known}")


def _present(folder: Path, index: Json, component: Component) -> bool:
    name = _part_name(component)
    class_name = _class_of(folder, index, name)
    if class_name is None and not component.optional:
        raise CheckpointError(f"{folder}: component {name!r} is missing from model_index.json")
    return class_name is not None


def _part(folder: Path, index: Json, name: str, expected: str) -> Part:
    home = _part_folder(folder, name)
    class_name = _class_of(folder, index, name)
    config = read_json(home / "config.json", folder)
    named = {class_name, config.get("_class_name") or class_name, *(config.get("architectures") or [])}
    for found in sorted(str(each) for each in named):
        if found != expected:
            raise CheckpointError(f"{home}: class {found!r} is not supported here; expected {expected}")
    weights, variant = find_weights(home, inside_root=folder)
    return Part(name, expected, home, config, weights, variant)


def _tokenizer(folder: Path, index: Json, name: str) -> str:
    class_name = _class_of(folder, index, name)
    home = _part_folder(folder, name)
    if class_name not in TOKENIZERS:
        raise CheckpointError(
            f"{home}: tokenizer class {class_name!r} is not supported; supported are {', '.join(TOKENIZERS)}"
        )
    if (home / "tokenizer_config.json").exists():
        read_json(home / "tokenizer_config.json", folder)
    return class_name


def _part_folder(folder: Path, name: str) -> Path:
    home = inside(folder / name, folder)
    if not home.is_dir():
        raise CheckpointError(f"{home}: component {name!r} is missing; download the checkpoint again")
    for path in home.rglob("*"):
        inside(path, folder)
    return home


def _class_of(folder: Path, index: Json, name: str) -> str | None:
    entry = index.get(name)
    if entry is None:
        return None
    if not (
        isinstance(entry, list) and len(entry) == 2 and all(isinstance(each, str | None) for each in entry)
    ):
        raise CheckpointError(
            f"{folder / 'model_index.json'}: {name!r} must be [library, class], not {entry!r}"
        )
    class_name: str | None = entry[1]
    return class_name


def _part_name(component: Component) -> str:
    return "vae" if component.kind in ("vae_encoder", "vae_decoder") else component.name
