"""A model folder (an artifact): finding, loading, verifying and writing it."""

import difflib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import ValidationError

from .errors import ArtifactError, InvalidRequest
from .families import CLIP_KINDS, FAMILIES, TEXT_KINDS, Family
from .files import atomic_folder, expanded, hash_file
from .manifest import Manifest
from .strict_json import parse_json

MANIFEST = "sfumato.json"
REMEDY = "convert the checkpoint again"
MAX_MANIFEST = 16 * 2**20


class Artifact:
    """A model folder that was found complete: `path`, its `manifest` and its `family`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.family: Family = FAMILIES[manifest.family]


def load_artifact(path: Path) -> Artifact:
    """Read a model folder's manifest and check that every file is there with its size.

    Raises ArtifactError naming what is missing, damaged or not understood. Hashes are left to `verify`.
    """
    manifest = load_manifest(path)
    _check_sizes(path, manifest)
    return Artifact(path, manifest)


def load_manifest(path: Path) -> Manifest:
    """The manifest of a model folder, checked against its family. Raises ArtifactError."""
    file = path / MANIFEST
    if not _exists(path):
        raise ArtifactError(f"{path}: no such model folder")
    if not _exists(file):
        raise ArtifactError(
            f"{path}: not a model folder ({MANIFEST} is missing); make one with `sfumato convert`"
        )
    try:
        manifest = Manifest.model_validate(_read_json(file))
    except (ValueError, RecursionError, OSError) as error:
        raise ArtifactError(f"{file}: {_first_line(error)}; {REMEDY}") from error
    _check_components(file, manifest)
    return manifest


def verify(path: Path) -> Manifest:
    """Check sizes, then SHA-256, of every file; raises ArtifactError naming the first damaged one."""
    manifest = load_artifact(path).manifest
    for name, info in manifest.files.items():
        try:
            digest = hash_file(path / name)
        except OSError as error:
            raise ArtifactError(f"{path / name}: cannot be read ({error.strerror})") from error
        if digest != info.sha256:
            raise ArtifactError(
                f"{path / name}: changed (sha256 {digest[:12]}, expected {info.sha256[:12]}); {REMEDY}"
            )
    return manifest


@contextmanager
def write_artifact(target: Path) -> Iterator[Path]:
    """A folder to fill and `seal`; it becomes `target` when the block ends well and vanishes otherwise."""
    with atomic_folder(target) as folder:
        yield folder
        if not (folder / MANIFEST).is_file():
            raise ArtifactError(f"{target}: the folder was not sealed")


def seal(folder: Path, **fields: Any) -> Manifest:
    """Hash every file of `folder`, and write the manifest made of `fields` (those of `Manifest`)."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    hashes = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        for path in paths
    }
    try:
        manifest = Manifest.model_validate({**fields, "files": hashes})
    except ValidationError as error:
        raise ArtifactError(f"{folder}: {_first_line(error)}") from error
    _check_components(folder / MANIFEST, manifest)
    document = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False)
    (folder / MANIFEST).write_text(document + "\n", encoding="utf-8")
    return manifest


def embedded_models() -> dict[str, Path]:
    """The models that ship with the package, by name."""
    root = Path(str(files("sfumato"))) / "embedded"
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{MANIFEST}"))}


def models_folder() -> Path:
    """Where a person's own models are found by name: SFUMATO_MODELS, or the user's data folder."""
    chosen = os.environ.get("SFUMATO_MODELS")
    return expanded(chosen) if chosen else platformdirs.user_data_path("sfumato") / "models"


def known_models() -> dict[str, Path]:
    """Every model that has a name here: those in `models_folder`, and those that ship, which go first."""
    own = {path.parent.name: path.parent for path in sorted(models_folder().glob(f"*/{MANIFEST}"))}
    return embedded_models() | {name: path for name, path in own.items() if name not in embedded_models()}


def find_model(name: str | Path) -> Path:
    """The folder of a model given by path or by known name; a folder wins where both exist.

    Raises ArtifactError for a folder that is no artifact, InvalidRequest for a name that is unknown.
    """
    known = known_models()
    path = expanded(name)
    if str(name) in known and not _exists(path / MANIFEST):
        return known[str(name)]
    if _exists(path):
        return path
    nearest = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    names = ", ".join(known) or "none is installed"
    raise InvalidRequest(
        f"unknown model {str(name)!r}: {hint}Give a model folder, or the name of a model ({names})"
    )


def _check_components(file: Path, manifest: Manifest) -> None:
    family = FAMILIES.get(manifest.family)
    if family is None:
        raise ArtifactError(f"{file}: unknown family {manifest.family!r}; known are {', '.join(FAMILIES)}")
    for component in family.components:
        if component.name not in manifest.components and not component.optional:
            raise ArtifactError(f"{file}: component {component.name!r} is missing; {REMEDY}")
    if manifest.inpainting and "vae_encoder" not in manifest.components:
        raise ArtifactError(f"{file}: inpainting needs 'vae_encoder', which is missing; {REMEDY}")
    kinds = {component.name: component.kind for component in family.components}
    for name, info in manifest.components.items():
        if info.kind != kinds.get(name):
            raise ArtifactError(
                f"{file}: family {family.name!r} has no component {name!r} of kind {info.kind!r}"
            )
        if info.kind in TEXT_KINDS and not (info.tokenizer and info.max_tokens):
            raise ArtifactError(f"{file}: text encoder {name!r} lacks its tokenizer or max_tokens")
        if info.kind in CLIP_KINDS and not info.hidden_states:
            raise ArtifactError(f"{file}: text encoder {name!r} lacks its number of hidden_states")
        needed = [f"{name}/openvino_model.xml", f"{name}/openvino_model.bin"]
        if info.tokenizer:
            needed += [f"{info.tokenizer}/tokenizer.json", f"{info.tokenizer}/tokenizer_config.json"]
        for path in needed:
            if path not in manifest.files:
                raise ArtifactError(f"{file}: {path} is missing from the list of files; {REMEDY}")


def _check_sizes(path: Path, manifest: Manifest) -> None:
    root = path.resolve()
    for name, info in manifest.files.items():
        file = path / name
        try:
            inside = file.resolve().is_relative_to(root)
            size = file.stat().st_size if file.is_file() else None
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise ArtifactError(f"{file}: cannot be read ({error}); {REMEDY}") from error
        if not inside:
            raise ArtifactError(f"{file}: leads out of the model folder; copy the file itself there")
        if size is None:
            raise ArtifactError(f"{file}: missing; {REMEDY}")
        if size != info.bytes:
            raise ArtifactError(f"{file}: damaged ({size} bytes, expected {info.bytes}); {REMEDY}")


def _exists(path: Path) -> bool:
    """Whether there is such a file or folder; Path.exists raises for names that are too long."""
    try:
        return path.exists()
    except OSError:
        return False


def _read_json(file: Path) -> Any:
    """The document; raises ValueError where readers could differ over it, as over a key given twice."""
    if not file.is_file() or file.stat().st_size > MAX_MANIFEST:
        raise ValueError(f"no file of at most {MAX_MANIFEST} bytes")
    document = parse_json(file.read_bytes())
    json.dumps(document, ensure_ascii=False).encode()  # refuses halves of characters, which JSON can spell
    return document


def _first_line(error: ValueError | RecursionError | OSError) -> str:
    match error:
        case OSError():
            return f"cannot be read ({error.strerror})"
        case RecursionError():
            return "nested too deeply"
        case ValidationError():
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            return " ".join(f"{place}: {first['msg']}".removeprefix(": ").split())
        case _:
            return f"not valid JSON ({error})"
