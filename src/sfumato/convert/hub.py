"""Fetching a model from the Hugging Face Hub: no more than what will be read, into the Hub's own cache."""

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from .. import __version__
from ..artifact import MANIFEST, MAX_MANIFEST, load_manifest
from ..errors import CheckpointError, SfumatoError
from ..files import check_space, human_bytes
from ..manifest import RelativePath
from . import OnProgress
from .checkpoints import read_json
from .checks import PICKLE, PICKLES
from .hub_errors import hub_errors
from .hub_files import INDEX, Files, checkpoint_files, no_pipeline, openvino_files, weight_files
from .hub_id import HubId

MAX_JSON = 16 * 2**20  # far above every known configuration and index of shards
REPORT_SECONDS = 5.0
COMMIT = re.compile("[0-9a-f]{40}")


def fetch(
    source: HubId,
    *,
    variants: Sequence[str | None] = (None, "fp16"),
    without_t5: bool = False,
    on_progress: OnProgress = lambda text, done, total: None,
) -> Path:
    """Bring what a conversion of `source` needs into the Hub's cache; returns the folder, or the one file.

    variants: which weights to take where a component has several, best first; None is the unnamed one.
    The folder holds a diffusers checkpoint, or a model that is converted already (`adopt.is_converted`).
    Pipeline and components are checked before weights are downloaded. Whole files that an earlier run left
    are kept; without a connection (or with HF_HUB_OFFLINE=1) the cache has to have everything.

    Raises CheckpointError for what cannot be converted or was not found, SfumatoError where the Hub cannot
    be reached, refuses, or the disk is too full.
    """
    if source.file and Path(source.file).suffix.lower() in PICKLES:
        raise CheckpointError(f"{source}: {PICKLE}; choose a safetensors file of the repository")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # huggingface_hub reads it when it is imported
    with hub_errors(source):
        repo = _Repository.open(source, on_progress)
        if source.file:
            return repo.download([source.file])[0]
        return repo.model(variants, without_t5)


def origin(path: Path) -> str | None:
    """`org/name@commit` of a folder or file in the Hub's cache; None elsewhere."""
    for snapshots in path.absolute().parents:
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
            commit = path.absolute().relative_to(snapshots).parts[0]
            return f"{snapshots.parent.name.removeprefix('models--').replace('--', '/')}@{commit}"
    return None


class _Repository:
    """One commit of a repository: the files it lists, with their bytes, and the cache's folder for them."""

    def __init__(
        self, source: HubId, commit: str, files: Files, online: bool, on_progress: OnProgress
    ) -> None:
        self._api, self._source, self._on_progress = _api(), source, on_progress
        self.commit, self.files, self.online = commit, files, online

    @classmethod
    def open(cls, source: HubId, on_progress: OnProgress) -> "_Repository":
        """List the repository, or, where the Hub cannot be reached, what the cache has of it."""
        from httpx2 import ProxyError, TransportError
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return cls(source, *_listing(source), True, on_progress)
        except ProxyError:
            raise
        except (TransportError, ConnectionError, HfHubHTTPError) as error:
            folder = _cached(source)
            if folder is None or (isinstance(error, HfHubHTTPError) and error.response.status_code < 500):
                raise
            return cls(source, folder.name, _listed_in(folder), False, on_progress)

    def model(self, variants: Sequence[str | None], without_t5: bool) -> Path:
        """Download what makes a model: first what is small and tells if it can be used, then the weights."""
        folder = self._folder()
        if MANIFEST in self.files:
            self._small(MANIFEST, MAX_MANIFEST)
            self.download(list(load_manifest(folder).files))
            return folder
        if INDEX not in self.files:
            raise CheckpointError(no_pipeline(self._source, self.files))
        index = read_json(self._small(INDEX), folder)
        if names := openvino_files(self._source, index, self.files, without_t5):
            self.download(names)
            return folder
        chosen = checkpoint_files(self._source, index, self.files, variants, without_t5)
        for name in chosen.configurations:
            read_json(self._small(name), folder)
        shards: list[str] = []
        for name in chosen.shard_indexes:
            shards += weight_files(name, read_json(self._small(name), folder))
        self.download([*chosen.others, *chosen.weights, *shards])
        return folder

    def _small(self, name: str, limit: int = MAX_JSON) -> Path:
        if self.files.get(name, 0) > limit:
            raise CheckpointError(
                f"{self._source}: {name} has {human_bytes(self.files[name])}, which no such file needs; "
                "choose another model"
            )
        return self.download([name])[0]

    def download(self, names: Sequence[str]) -> list[Path]:
        """Bring these files into the cache, in order, after a look at the disk's free space."""
        folder = self._folder()
        self._expect(names, folder)
        missing = {name: self.files[name] for name in names if _size(folder / name) != self.files[name]}
        check_space(folder, sum(missing.values()))
        for number, name in enumerate(missing):
            self._one(name, number, len(missing))
        return [folder / name for name in names]

    def _one(self, name: str, number: int, total: int) -> None:
        meter = _meter(name, self.files[name], lambda text: self._on_progress(text, number, total))
        path = self._api.hf_hub_download(
            self._source.repo, name, revision=self._source.revision, tqdm_class=meter
        )
        if Path(path).parent.resolve() != (self._folder() / name).parent:
            raise SfumatoError(
                f"{self._source}: the repository changed meanwhile; run the same command again"
            )
        if _size(Path(path)) != self.files[name]:
            raise _wrong_size(name)

    def _folder(self) -> Path:
        return _cache_of(self._source) / "snapshots" / self.commit

    def _expect(self, names: Sequence[str], folder: Path) -> None:
        absent = next((name for name in names if name not in self.files), None)
        if absent is None:
            return
        if self.online:
            raise CheckpointError(f"{self._source}: has no file {absent}; choose another model or revision")
        raise SfumatoError(
            f"{self._source}: the Hub cannot be reached, and {folder} lacks {absent}; "
            "connect (and unset HF_HUB_OFFLINE), then run the same command again"
        )


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="sfumato", library_version=__version__)


def _listing(source: HubId) -> tuple[str, Files]:
    """The commit that the Hub has, and its files' bytes by name."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    try:
        info = _api().model_info(
            source.repo,
            revision=source.revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
        if not COMMIT.fullmatch(info.sha):
            raise ValueError(f"commit {info.sha!r}")
        return info.sha, {each.rfilename: int(each.size) for each in info.siblings if _plain(each.rfilename)}
    except HFValidationError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SfumatoError(
            f"{source}: {constants.ENDPOINT} does not answer as the Hub does ({error}); "
            "check HF_ENDPOINT, or your network's login page"
        ) from error


def _cache_of(source: HubId) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
    return cache / repo_folder_name(repo_id=source.repo, repo_type="model")


def _cached(source: HubId) -> Path | None:
    """The cache's folder of the revision, as it was when it was last downloaded."""
    cache = _cache_of(source)
    reference = cache / "refs" / source.revision
    commit = reference.read_text().strip() if reference.is_file() else source.revision
    folder = cache / "snapshots" / commit
    return folder if COMMIT.fullmatch(commit) and folder.is_dir() else None


def _listed_in(folder: Path) -> Files:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def _plain(name: str) -> bool:
    """Whether a listed name is a path inside a folder; no others are ever read or written."""
    try:
        return PurePosixPath(TypeAdapter(RelativePath).validate_python(name)).as_posix() == name
    except ValidationError:
        return False


def _meter(name: str, size: int, report: Callable[[str], None]) -> Any:
    """A progress bar's class for huggingface_hub that draws nothing, reports, and stops what is too long."""
    from tqdm import tqdm

    whole = human_bytes(size)
    received, reported = 0, time.monotonic()
    report(f"downloading {name} ({whole})")

    class Meter(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal received, reported
            received += int(n or 0)
            if received > size:
                raise _wrong_size(name)
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                report(f"downloading {name} ({human_bytes(received)} of {whole})")

        def update_transfer(self, n: float | None = 1) -> None:
            """Bytes on the network; with it, one bar is made of what would be two."""

        def set_transfer_postfix_str(self, *args: Any, **options: Any) -> None:
            """The network's speed, which is not shown."""

    return Meter


def _wrong_size(name: str) -> CheckpointError:
    return CheckpointError(
        f"{name}: not of the size that the Hub lists; remove it from the cache and try again"
    )
