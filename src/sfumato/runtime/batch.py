"""Many requests from a file, one JSON object a line: read when they are due, and made once however often run.

The pictures themselves say what is done: each carries a digest of its line, of the files that the line names
and of the model, and is written whole or not at all. So a killed run goes on where it stopped, with nothing
else to keep, lose or repair. The files must stay: a line without one of them is a bad line, even where its
picture was made, since nothing can say any more whether that is the one asked for.
"""

import codecs
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import InvalidRequest, SfumatoError
from ..files import expanded, hash_file, remove_abandoned
from ..manifest import Manifest
from ..strict_json import parse_json
from .build import build_request
from .parameters import parse_size
from .pictures import opened
from .pipeline import Pipeline
from .png import save_png
from .progress import OnStepDone
from .request import Request

MAX_LINE = 1 << 20
MAX_NAME = 100
DIGEST = "sfumato batch line"
"""Key of the PNG text that says which line a picture is of."""
PICTURES = ("image", "mask", "mask_image")
"""Names whose values are files, found from the batch file's folder."""
EXAMPLE = '{"prompt": "noto red apple", "seed": 7}'


class WriteFailed(SfumatoError):
    """A picture cannot be written: no later one could either."""


@dataclass(frozen=True)
class Line:
    """One request as it stands in the file.

    number: from 1. given: what `build_request` takes beside the prompt; a seed is always among it.
    name: of the picture's file, without its ending. content: the request in one spelling, without the name.
    hashes: SHA-256 of each file among `given`.
    """

    number: int
    prompt: Any
    given: dict[str, Any]
    name: str | None
    content: str
    hashes: tuple[str, ...] = ()

    def digest(self, model: str) -> str:
        """What tells this line's pictures from those of other lines, requests and models."""
        return _hash(model, str(self.number), self.content, *self.hashes)


@dataclass(frozen=True)
class BadLine:
    """A line that is no request, and why."""

    number: int
    reason: str


def open_lines(path: Path) -> BufferedReader:
    """Open a batch file; raises InvalidRequest where it is missing, no file, or no UTF-8 text."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read ({error.strerror})") from error
    if b"\0" in file.peek():
        file.close()
        raise InvalidRequest(f"{path}: is no UTF-8 text; write one JSON object a line, such as {EXAMPLE}")
    return file


def count_lines(path: Path) -> int | None:
    """How many lines a file has, the last one with or without its end; None for what is read only once."""
    if not path.is_file():
        return None
    count, last = 0, b"\n"
    with path.open("rb") as file:
        while part := file.read(MAX_LINE):
            count, last = count + part.count(b"\n"), part[-1:]
    return count + (last != b"\n")


def read_lines(file: BufferedReader, folder: Path) -> Iterator[Line | BadLine]:
    """Read requests one at a time, without empty lines.

    folder: where relative names of pictures begin. These are read, for their hashes.
    """
    for number in itertools.count(1):
        data = file.readline(MAX_LINE + 1)
        if not data:
            return
        if len(data) > MAX_LINE and not data.endswith(b"\n"):
            while data and not data.endswith(b"\n"):
                data = file.readline(MAX_LINE)
            yield BadLine(number, f"longer than {MAX_LINE} bytes")
            continue
        data = data.removeprefix(codecs.BOM_UTF8) if number == 1 else data
        if not data.strip():
            continue
        try:
            yield _parse(number, data, folder)
        except InvalidRequest as error:
            yield BadLine(number, str(error))


class Batch:
    """Makes the pictures of lines into a folder with one loaded pipeline.

    title: a short form of a prompt for the file names of pictures without one of their own, which are
        `<line number>-<title>-<digest>.png`.
    """

    def __init__(self, pipeline: Pipeline, folder: Path, title: Callable[[str], str]) -> None:
        self._pipeline = pipeline
        self._manifest = pipeline.artifact.manifest
        self._folder = folder
        self._title = title
        merging = () if pipeline.merging is None else (str(pipeline.merging.described),)
        self._model = _identity(self._manifest, *merging)
        remove_abandoned(folder, "*.png")

    def make(self, line: Line, on_step: OnStepDone, on_saved: Callable[[Path], None]) -> int:
        """Make those pictures of a line that are not there yet; returns how many they were.

        Raises WriteFailed where pictures cannot be written, else a SfumatoError for this line alone.
        """
        request = build_request(self._manifest, line.prompt, line.given)
        digest = line.digest(self._model)
        paths = self._paths(line, request, digest)
        done = next((i for i, path in enumerate(paths) if not _is_done(path, digest)), len(paths))
        if done == len(paths):
            return 0
        rest = replace(request, seed=request.seeds[done], count=request.count - done)

        def on_image(index: int, image: Image.Image, parameters: str) -> None:
            path = paths[done + index]
            try:
                save_png(image, path, parameters, {DIGEST: digest})
            except SfumatoError as error:
                raise WriteFailed(str(error)) from error
            on_saved(path)

        self._pipeline.generate(rest, on_step=on_step, on_image=on_image)
        return rest.count

    def _paths(self, line: Line, request: Request, digest: str) -> list[Path]:
        stem = line.name or f"{line.number:06d}-{self._title(request.prompt)}-{digest[:8]}"
        stems = [stem] if request.count == 1 else [f"{stem}-{i + 1}" for i in range(request.count)]
        return [self._folder / f"{each}.png" for each in stems]


def _parse(number: int, data: bytes, folder: Path) -> Line:
    try:
        document = parse_json(data.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"is no JSON ({error}); write an object such as {EXAMPLE}") from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"is no JSON object; write one such as {EXAMPLE}")
    name = _name(document.pop("name", None))
    content = json.dumps(document, sort_keys=True)
    if document.get("prompt") is None:
        raise InvalidRequest('has no "prompt"')
    given = {key: _value(key, value, folder) for key, value in document.items() if key != "prompt"}
    if given.get("seed") is None:
        given["seed"] = int(_hash(str(number), content)[:8], 16)
    hashes = tuple(_hash_of(key, given[key]) for key in PICTURES if given.get(key) is not None)
    return Line(number, document["prompt"], given, name, content, hashes)


def _hash_of(key: str, path: Path) -> str:
    try:
        if not path.is_file():  # a pipe would have no end
            raise InvalidRequest(f"{key} {str(path)!r}: no such file")
        return hash_file(path)
    except OSError as error:
        raise InvalidRequest(f"{key} {str(path)!r}: cannot be read ({error.strerror})") from error


def _name(name: Any) -> str | None:
    if name is None:
        return None
    plain = isinstance(name, str) and name.isprintable() and not any(sign in name for sign in '/\\:*?"<>|')
    if not plain or name[:1] in ("", ".", " ") or len(name.encode()) > MAX_NAME:
        raise InvalidRequest(
            f"name {str(name)[:MAX_NAME]!r}: must be a plain file name of at most {MAX_NAME} bytes"
        )
    return str(name).removesuffix(".png") or None


def _value(key: str, value: Any, folder: Path) -> Any:
    """A value as Python callers give it: files as paths, and "64x64" as (64, 64); others as they are."""
    if key in PICTURES and value is not None:
        if not isinstance(value, str) or "\0" in value:
            raise InvalidRequest(f"{key} {value!r}: must be the name of a file")
        return folder / expanded(value)
    if key == "size" and isinstance(value, str):
        try:
            return parse_size(value)
        except ValueError as error:
            raise InvalidRequest(f"size {value!r}: {error}") from error
    return value


def _is_done(path: Path, digest: str) -> bool:
    if not path.exists():
        return False
    with opened(path) as image:
        if image.info.get(DIGEST) == digest:
            return True
    raise InvalidRequest(
        f"{path}: exists already, and is of another request or model; move it, or use another name"
    )


def _identity(manifest: Manifest, *changes: str) -> str:
    files = (f"{name} {info.sha256}" for name, info in sorted(manifest.files.items()))
    return _hash(*changes, manifest.name, manifest.sampling.model_dump_json(), *files)


def _hash(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
