"""Pictures that were made, for each browser its own, as PNGs that say how they were made."""

import re
import secrets
import shutil
import tempfile
import threading
from pathlib import Path

from PIL.Image import Image

from ..files import expanded, write_errors
from ..runtime.png import save_png

OWNER = re.compile("[A-Za-z0-9_-]{22}")
MOST_PICTURES = 500


class Album:
    """A folder of pictures, with a folder in it for each owner.

    folder: where they stay; None keeps them until `close`. Of one owner's pictures the oldest are removed
    where there are more than MOST_PICTURES and they would not stay anyway.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.lasting = folder is not None
        if folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="sfumato-pictures-"))
        else:
            self.folder = expanded(folder).resolve()
            with write_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()

    def owner(self, claimed: object) -> str:
        """The owner that a browser says it is, or a new one where it says nothing that can be."""
        if isinstance(claimed, str) and OWNER.fullmatch(claimed):
            return claimed
        return secrets.token_urlsafe(16)

    def add(self, owner: str, image: Image, seed: int, parameters: str | None) -> Path:
        """Keep a picture; the file's name is its number and its seed."""
        folder = self.folder / self.owner(owner)
        with self._lock, write_errors(folder):
            folder.mkdir(exist_ok=True)
            present = self.pictures(owner)
            number = int(present[0].stem.split("-")[0]) + 1 if present else 1
            path = folder / f"{number:06}-{seed}.png"
            save_png(image, path, parameters)
            if not self.lasting:
                for old in present[MOST_PICTURES - 1 :]:
                    old.unlink(missing_ok=True)
        return path

    def pictures(self, owner: object) -> list[Path]:
        """An owner's pictures, the newest first."""
        if not (isinstance(owner, str) and OWNER.fullmatch(owner)):
            return []
        found = (self.folder / owner).glob("[0-9]*-*.png")
        return sorted(found, key=lambda path: path.name, reverse=True)

    def remove(self, owner: str, path: Path) -> None:
        """Remove one of an owner's pictures; another one's stays."""
        if path in self.pictures(owner):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all of them, unless they are to stay."""
        if not self.lasting:
            shutil.rmtree(self.folder, ignore_errors=True)
