"""The models that a server offers, as they are on the disk now."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ..artifact import Artifact, find_model, known_models, load_artifact
from ..errors import ArtifactError, InvalidRequest
from ..files import human_bytes

_log = logging.getLogger(__name__)


class Catalog:
    """Models by name: those that were asked for, which go first, then all that have a name here.

    Raises ArtifactError or InvalidRequest for a model that was asked for and cannot be loaded.
    """

    def __init__(self, wanted: Sequence[str | Path] = ()) -> None:
        self._wanted: dict[str, Path] = {}
        for each in wanted:
            path = load_artifact(find_model(each)).path
            self._wanted.setdefault(_name(path, self._wanted), path)

    def models(self) -> dict[str, Artifact]:
        """Those whose folders are whole; the first one is the default."""
        shown = {path.resolve() for path in self._wanted.values()}
        further = {name: path for name, path in known_models().items() if path.resolve() not in shown}
        found = {}
        for name, path in (
            self._wanted | {_name(path, self._wanted): path for path in further.values()}
        ).items():
            try:
                found[name] = load_artifact(path)
            except ArtifactError as error:
                _log.warning("%s", error)
        return found

    def find(self, name: object) -> Artifact:
        """The model of that name. Raises InvalidRequest where there is none, or no longer."""
        models = self.models()
        if not isinstance(name, str) or name not in models:
            there = ", ".join(models) or "none"
            raise InvalidRequest(f"model {str(name)[:100]!r}: is not there, or no longer; there is: {there}")
        return models[name]


def is_refiner(artifact: Artifact) -> bool:
    """Whether a model only goes on with pictures."""
    return bool(artifact.manifest.conditioning.aesthetic_score)


def label(name: str, artifact: Artifact, step_seconds: float | None = None) -> str:
    """One line for a list: `mini-int8, int8, 16.2 MB, 0.03 s a step`."""
    manifest = artifact.manifest
    parts = [name, manifest.precision, human_bytes(manifest.bytes)]
    if manifest.token_merging is not None:
        parts.append(f"merges {manifest.token_merging.ratio:.0%} of the tokens")
    if step_seconds is not None:
        parts.append(f"{step_seconds:.2g} s a step")
    return ", ".join(parts)


def _name(path: Path, taken: dict[str, Path]) -> str:
    """The folder's name, with its parent's before it where another model has it."""
    name = path.resolve().name
    if name in taken and taken[name].resolve() != path.resolve():
        return str(path.resolve())
    return name
