"""Where `generate` writes: names for pictures, checked beforehand, written whole or not at all."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from PIL import Image

from sfumato.errors import InvalidRequest
from sfumato.files import expanded, folder_made, write_errors
from sfumato.runtime.png import save_png

MAX_SLUG = 48


class Destination:
    """`-o` as a person means it: a `.png` file, or a folder (by default the current one) to fill."""

    def __init__(self, output: str | None, prompt: str) -> None:
        self.file: Path | None = None
        self.folder = expanded(output or ".")
        self._slug = slug(prompt)
        with write_errors(self.folder):
            is_folder = self.folder.is_dir()
        if output and not output.endswith(("/", os.sep)) and not is_folder and self.folder.suffix:
            if self.folder.suffix.lower() != ".png":
                raise InvalidRequest(
                    f"output {output!r}: pictures are written as PNG; "
                    f"name it {self.folder.with_suffix('.png').name!r}, or a folder with a trailing '/'"
                )
            self.file = self.folder
            self.folder = self.file.parent

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Make the folder and try writing to it; a folder made here goes again if nothing came of it."""
        for folder in (self.folder, *self.folder.parents):
            if folder.exists() and not folder.is_dir():
                raise InvalidRequest(
                    f"output {self.folder}: {folder} is a file; choose another folder with -o"
                )
        with ExitStack() as stack:
            with write_errors(self.file or self.folder):
                stack.enter_context(folder_made(self.folder))
                with tempfile.TemporaryFile(dir=self.folder):
                    pass
            yield

    def save(self, image: Image.Image, seed: int, index: int, count: int, parameters: str | None) -> Path:
        """Write picture `index` of `count`, return its path; only a FILE that was asked for is replaced."""
        if self.file is None:
            path = self._free_name(f"{self._slug}-{seed}")
        elif count == 1:
            path = self.file
        else:
            path = self.file.with_stem(f"{self.file.stem}-{index + 1}")
        save_png(image, path, parameters)
        return path

    def _free_name(self, stem: str) -> Path:
        path, counter = self.folder / f"{stem}.png", 1
        while path.exists():
            counter += 1
            path = self.folder / f"{stem}-{counter}.png"
        return path


def png_path(text: str) -> Path:
    """A path that ends with .png."""
    path = expanded(text)
    if path.suffix.lower() != ".png":
        raise InvalidRequest(
            f"{text!r}: pictures are written as PNG; name it {path.with_suffix('.png').name!r}"
        )
    return path


def slug(prompt: str) -> str:
    """`noto red apple` as `noto-red-apple`: letters and digits of any script, at most MAX_SLUG bytes."""
    words = re.sub(r"[\W_]+", "-", prompt.lower())
    return words.encode()[:MAX_SLUG].decode(errors="ignore").strip("-") or "image"
