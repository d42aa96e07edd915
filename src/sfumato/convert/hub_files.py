"""Which files of a repository a conversion reads, told from their names and model_index.json alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import CheckpointError
from ..families import Component, Family
from .checkpoints import CLASSES, class_of, family_of, part_name, present
from .checks import PICKLE, PICKLES
from .hub_id import HubId
from .weights import STEMS, index_names

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
TOKENIZER_FILES = (".json", ".txt", ".model")
IR_FILES = ("openvino_model.xml", "openvino_model.bin", "config.json")
Files = Mapping[str, int]
Json = dict[str, Any]


@dataclass(frozen=True)
class Selection:
    """What to download: configurations and indexes of shards, which are read first, weights, and the rest."""

    configurations: tuple[str, ...]
    shard_indexes: tuple[str, ...]
    weights: tuple[str, ...]
    others: tuple[str, ...]


def checkpoint_files(
    source: HubId, index: Json, files: Files, variants: Sequence[str | None], without_t5: bool
) -> Selection:
    """The files of a diffusers checkpoint. Raises CheckpointError for classes and weights not supported."""
    family, folder = family_of(Path(str(source)), index), Path(str(source))
    components = [each for each in _wanted(family, without_t5) if present(folder, index, each)]
    parts = {part_name(each): CLASSES[each.kind] for each in components}
    weights = []
    for name, expected in parts.items():
        if (found := class_of(folder, index, name)) != expected:
            raise CheckpointError(f"{source}: {name} is of class {found!r}; supported is {expected}")
        weights.append(_weights(source, name, files, variants))
    return Selection(
        configurations=(*(f"{name}/config.json" for name in parts), SCHEDULER),
        shard_indexes=tuple(name for name in weights if name.endswith(".json")),
        weights=tuple(name for name in weights if not name.endswith(".json")),
        others=(*_tokenizers(components, files), *_t5_limit(family, files)),
    )


def openvino_files(source: HubId, index: Json, files: Files, without_t5: bool) -> list[str]:
    """The files of a model in OpenVINO's format, small ones first; empty where its own weights are there too.

    Stability AI's SDXL, for one, has both, and only the weights can take another precision or a LoRA.
    """
    plain = {**index, "_class_name": str(index.get("_class_name")).removeprefix("OV")}
    family = family_of(Path(str(source)), plain)
    denoiser = family.denoiser
    has_weights = any(name.endswith(".safetensors") for name in files if name.startswith(f"{denoiser}/"))
    if has_weights or f"{denoiser}/{IR_FILES[0]}" not in files:
        return []
    components = [
        each
        for each in _wanted(family, without_t5)
        if not each.optional or f"{each.name}/{IR_FILES[0]}" in files
    ]
    names = [f"{each.name}/{file}" for each in components for file in IR_FILES]
    names += [SCHEDULER, *_tokenizers(components, files), *_t5_limit(family, files)]
    return sorted(dict.fromkeys(names), key=lambda name: files.get(name, 0))


def weight_files(index_name: str, index: Json) -> list[str]:
    """The safetensors files that an index of shards names, as paths in the repository."""
    shards = index.get("weight_map", {})
    names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    if not names or any("/" in name or not name.endswith(".safetensors") for name in names):
        raise CheckpointError(f"{index_name}: must name safetensors files beside it; choose another model")
    return [f"{PurePosixPath(index_name).parent}/{name}" for name in names]


def no_pipeline(source: HubId, files: Iterable[str]) -> str:
    """Why a repository without model_index.json cannot be taken as a whole, and what to give instead."""
    names = sorted(files)
    if single := [name for name in names if name.endswith(".safetensors")]:
        return (
            f"{source}: not in diffusers layout ({INDEX} is missing); name one of its files, for example "
            f"{source.repo}/{single[0]}"
        )
    if pickles := [name for name in names if PurePosixPath(name).suffix.lower() in PICKLES]:
        return f"{source}: has only {pickles[0]}; {PICKLE}; choose a model that is stored as safetensors"
    return f"{source}: not a model in diffusers layout ({INDEX} is missing); choose another"


def _wanted(family: Family, without_t5: bool) -> list[Component]:
    return [each for each in family.components if not (without_t5 and each.kind == "t5")]


def _weights(source: HubId, part: str, files: Files, variants: Sequence[str | None]) -> str:
    """The index of shards or the single file of a part, of the first variant that is there."""
    for variant in variants:
        for stem in STEMS:
            single = f"{stem}.safetensors" if variant is None else f"{stem}.{variant}.safetensors"
            for name in (*index_names(stem, variant), single):
                if f"{part}/{name}" in files:
                    return f"{part}/{name}"
    inside = sorted(name for name in files if name.startswith(f"{part}/"))
    if pickles := [name for name in inside if PurePosixPath(name).suffix.lower() in PICKLES]:
        raise CheckpointError(
            f"{source}: {part} has only {pickles[0]}; {PICKLE}; "
            "choose a model or revision that is stored as safetensors"
        )
    raise CheckpointError(f"{source}: {part} has no {STEMS[0]}.safetensors or {STEMS[1]}.safetensors")


def _tokenizers(components: Sequence[Component], files: Files) -> list[str]:
    folders = {f"{each.tokenizer}/" for each in components if each.tokenizer}
    return [
        name
        for name in files
        if name.startswith(tuple(folders)) and PurePosixPath(name).suffix in TOKENIZER_FILES
    ]


def _t5_limit(family: Family, files: Files) -> list[str]:
    """The T5 tokenizer's configuration: how long the context is, even where T5 itself is left out."""
    names = [f"{each.tokenizer}/tokenizer_config.json" for each in family.components if each.kind == "t5"]
    return [name for name in names if name in files]
