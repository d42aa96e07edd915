"""Reading a diffusers folder: its family, its parts and their files, checked before anything is loaded."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..families import FAMILIES, Component, Family
from .tensors import Stored
from .weights import VARIANTS, find_weights

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
TINY_DECODER = "tiny_decoder"
Json = dict[str, Any]

UNBOUNDED = 100_000  # transformers writes 1e30 where a tokenizer has no limit


@dataclass(frozen=True)
class Part:
    """One trained network of a checkpoint: class to instantiate, configuration and weights.

    folder: where it was found (a folder, or a file that holds more than this part), for messages.
    tensors: the weights by the names that diffusers and transformers give them in files.
    """

    name: str
    class_name: str
    folder: Path
    config: Json
    tensors: Mapping[str, Stored]

    @property
    def files(self) -> list[Path]:
        """The files that the tensors lie in."""
        return sorted({tensor.store.path for tensor in self.tensors.values()})


@dataclass(frozen=True)
class TokenizerFiles:
    """Where a tokenizer's files lie, and the class that reads them."""

    folder: Path
    class_name: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose parts were found and checked.

    folder: a diffusers folder, or the single file. index, scheduler: the contents of model_index.json and
    scheduler_config.json. components: those of the family that are present. parts: the networks by folder
    name (`vae` serves both `vae_encoder` and `vae_decoder`, unless there is a `tiny_decoder`). tokenizers: by
    folder name.
    """

    folder: Path
    family: Family
    index: Json
    components: tuple[Component, ...]
    parts: dict[str, Part]
    tokenizers: dict[str, TokenizerFiles]
    scheduler: Json

    def part_of(self, component: Component) -> Part:
        """The network that a component is exported from."""
        if component.kind == "vae_decoder" and TINY_DECODER in self.parts:
            return self.parts[TINY_DECODER]
        return self.parts[part_name(component)]


def open_checkpoint(
    folder: Path,
    *,
    without_t5: bool = False,
    variants: Sequence[str | None] = VARIANTS,
    elsewhere: Collection[str] = (),
) -> Checkpoint:
    """Find and check every part of a diffusers folder; loads no weights, runs no code from it.

    variants: which weights to take where there are several, best first. elsewhere: parts that are not looked
    for, as they come from another place. Raises CheckpointError naming the first part that is missing,
    damaged, unsafe or of an unknown class.
    """
    index = read_json(folder / "model_index.json", folder)
    family = family_of(folder, index)
    classes = {part_name(component): CLASSES[component.kind] for component in family.components}
    index |= {name: ["diffusers", classes[name]] for name in elsewhere}
    components = tuple(
        component
        for component in family.components
        if not (without_t5 and component.kind == "t5") and present(folder, index, component)
    )
    parts: dict[str, Part] = {}
    for component in components:
        name = part_name(component)
        if name not in parts and name not in elsewhere:
            parts[name] = _part(folder, index, name, CLASSES[component.kind], variants)
    tokenizers = tokenizers_of(folder, index, components)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", folder)
    return Checkpoint(folder, family, index, components, parts, tokenizers, scheduler)


def t5_limit(checkpoint: Checkpoint) -> int | None:
    """The T5 tokenizer's longest input; it holds for the zeros in T5's place too."""
    t5 = next((each.tokenizer for each in checkpoint.family.components if each.kind == "t5"), None)
    files = checkpoint.tokenizers.get(t5 or "")
    home = checkpoint.folder / (t5 or "") if files is None else files.folder
    config = home / "tokenizer_config.json"
    if t5 is None or not config.is_file():
        return None
    limit = read_json(config, home).get("model_max_length")
    return int(min(limit, UNBOUNDED)) if isinstance(limit, int | float) else None


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


def family_of(folder: Path, index: Json) -> Family:
    """The family of the pipeline that model_index.json names."""
    name = index.get("_class_name")
    for family in FAMILIES.values():
        if name in family.pipeline_classes:
            return family
    known = ", ".join(each for family in FAMILIES.values() for each in family.pipeline_classes)
    raise CheckpointError(f"{folder}: pipeline class {name!r} is not supported; supported are {known}")


def present(folder: Path, index: Json, component: Component) -> bool:
    """Whether model_index.json has a component; CheckpointError where it lacks one that must be there."""
    name = part_name(component)
    class_name = class_of(folder, index, name)
    if class_name is None and not component.optional:
        raise CheckpointError(f"{folder}: component {name!r} is missing from model_index.json")
    return class_name is not None


def _part(folder: Path, index: Json, name: str, expected: str, variants: Sequence[str | None]) -> Part:
    home = _part_folder(folder, name)
    class_name = class_of(folder, index, name)
    config = read_json(home / "config.json", folder)
    named = {class_name, config.get("_class_name") or class_name, *(config.get("architectures") or [])}
    for found in sorted(str(each) for each in named):
        if found != expected:
            raise CheckpointError(f"{home}: class {found!r} is not supported here; expected {expected}")
    return Part(name, expected, home, config, find_weights(home, inside_root=folder, variants=variants))


def tokenizers_of(folder: Path, index: Json, components: Sequence[Component]) -> dict[str, TokenizerFiles]:
    """The tokenizers that components of a diffusers folder need, each of a class that is known."""
    names = [component.tokenizer for component in components if component.tokenizer]
    return {name: _tokenizer_files(folder, index, name) for name in names}


def _tokenizer_files(folder: Path, index: Json, name: str) -> TokenizerFiles:
    class_name = class_of(folder, index, name)
    home = _part_folder(folder, name)
    if class_name not in TOKENIZERS:
        raise CheckpointError(
            f"{home}: tokenizer class {class_name!r} is not supported; supported are {', '.join(TOKENIZERS)}"
        )
    if (home / "tokenizer_config.json").exists():
        read_json(home / "tokenizer_config.json", folder)
    return TokenizerFiles(home, class_name)


def _part_folder(folder: Path, name: str) -> Path:
    home = inside(folder / name, folder)
    if not home.is_dir():
        given = ", or give one with --vae" if name == "vae" else ""
        raise CheckpointError(f"{home}: component {name!r} is missing; download the checkpoint again{given}")
    for path in home.rglob("*"):
        inside(path, folder)
    return home


def class_of(folder: Path, index: Json, name: str) -> str | None:
    """The class that model_index.json names for a part; None where there is none."""
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


def part_name(component: Component) -> str:
    """The folder of the network that a component is exported from."""
    return "vae" if component.kind in ("vae_encoder", "vae_decoder") else component.name
