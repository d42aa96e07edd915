"""A model folder: its manifest (`sfumato.json`), finding, loading, verifying and writing it."""

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from . import __version__
from .errors import ArtifactError, InvalidRequest
from .families import CLIP_KINDS, FAMILIES, TEXT_KINDS, ConditioningSettings, Family, Kind
from .files import atomic_folder, hash_file

MANIFEST = "sfumato.json"
FORMAT: Literal[1] = 1
REMEDY = "convert the checkpoint again"


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in path or "\0" in path:
        raise ValueError("not a plain path inside the folder")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]
Positive = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ComponentInfo(_Strict):
    """One network of the folder, under `<name>/openvino_model.xml` and `.bin`.

    tokenizer, max_tokens: text encoders' tokenizer folder and fixed input length.
    hidden_states: how many `hidden_states.N` outputs a CLIP encoder has (layers + 1).
    """

    kind: Kind
    tokenizer: RelativePath | None = None
    max_tokens: Positive | None = None
    hidden_states: Positive | None = None


class LatentSpace(_Strict):
    """The VAE's latents: model latents = (VAE latents - shift) * scale; one latent is factor x factor pixels.

    default_size: width and height of a picture when none is asked for; multiples of size_multiple.
    """

    channels: Positive
    factor: Positive
    scale: Finite
    shift: Finite = 0.0
    size_multiple: Positive
    default_size: tuple[Positive, Positive]


class Sampling(_Strict):
    """The sampling that the checkpoint asks for; `scheduler` is its configuration in diffusers' terms."""

    sampler: str
    prediction: Literal["epsilon", "v_prediction", "flow"]
    steps: Positive
    guidance: Finite
    scheduler: dict[str, JsonValue]


class FileInfo(_Strict):
    """Size and SHA-256 of one file."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class LoraInfo(_Strict):
    """A LoRA that was fused into the weights."""

    file: str
    scale: Finite


class Manifest(_Strict):
    """Everything the runtime knows about a model folder."""

    format: Literal[1] = FORMAT
    sfumato: str = __version__
    name: str
    family: str
    source: dict[str, str] = {}
    precision: str
    loras: tuple[LoraInfo, ...] = ()
    components: dict[RelativePath, ComponentInfo]
    latents: LatentSpace
    sampling: Sampling
    conditioning: ConditioningSettings = ConditioningSettings()
    files: dict[RelativePath, FileInfo]

    @property
    def bytes(self) -> int:
        """What the model takes on disk, without the manifest."""
        return sum(info.bytes for info in self.files.values())


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
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such model folder")
    if not file.is_file():
        raise ArtifactError(
            f"{path}: not a model folder ({MANIFEST} is missing); make one with `sfumato convert`"
        )
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except (ValidationError, OSError) as error:
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


def find_model(name: str | Path) -> Path:
    """The folder of a model given by path or by embedded name; a folder wins where both exist.

    Raises ArtifactError for a folder that is no artifact, InvalidRequest for a name that is unknown.
    """
    known = embedded_models()
    if str(name) in known and not (Path(name) / MANIFEST).is_file():
        return known[str(name)]
    path = Path(name).expanduser()
    if path.exists():
        return path
    nearest = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    names = ", ".join(known) or "none is installed"
    raise InvalidRequest(
        f"unknown model {str(name)!r}: {hint}Give a model folder or an embedded name ({names})"
    )


def _check_components(file: Path, manifest: Manifest) -> None:
    family = FAMILIES.get(manifest.family)
    if family is None:
        raise ArtifactError(f"{file}: unknown family {manifest.family!r}; known are {', '.join(FAMILIES)}")
    for component in family.components:
        if component.name not in manifest.components and not component.optional:
            raise ArtifactError(f"{file}: component {component.name!r} is missing; {REMEDY}")
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
        needed += [f"{info.tokenizer}/tokenizer.json"] if info.tokenizer else []
        for path in needed:
            if path not in manifest.files:
                raise ArtifactError(f"{file}: {path} is missing from the list of files; {REMEDY}")


def _check_sizes(path: Path, manifest: Manifest) -> None:
    root = path.resolve()
    for name, info in manifest.files.items():
        file = path / name
        if not file.resolve().is_relative_to(root):
            raise ArtifactError(f"{file}: leads out of the model folder; copy the file itself there")
        if not file.is_file():
            raise ArtifactError(f"{file}: missing; {REMEDY}")
        size = file.stat().st_size
        if size != info.bytes:
            raise ArtifactError(f"{file}: damaged ({size} bytes, expected {info.bytes}); {REMEDY}")


def _first_line(error: ValidationError | OSError) -> str:
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror})"
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else str(first["msg"])
