"""Makes docs/gallery.md and its pictures: one for every feature, each from the command that stands beside it.

    python examples/gallery.py [NAME ...]

Runs the commands in an empty folder and takes about two minutes; with names, only those pictures are made anew.
Needs the models that `make models` converts.
"""

import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent.parent / "docs"
APPLE = 'sfumato generate "noto red apple" --seed 7 -o apple.png'
MASK = (
    'python -c "from PIL import Image; mask = Image.new(\'L\', (128, 128)); '
    "mask.paste(255, ({box})); mask.save('mask.png')\""
)


@dataclass(frozen=True)
class Entry:
    """One feature. prepare: commands that are not shown. pictures: what is shown, left to right."""

    name: str
    title: str
    text: str
    commands: tuple[str, ...]
    pictures: tuple[str, ...]
    prepare: tuple[str, ...] = ()


def variants(command: str, option: str, values: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """One command for each value of an option, and their pictures."""
    names = tuple(f"{index}.png" for index in range(len(values.split())))
    commands = tuple(
        f"{command} {option} {value} -o {name}" for value, name in zip(values.split(), names, strict=True)
    )
    return commands, names


FACE = 'sfumato generate "fluent grinning face" --seed 3'
ENTRIES = (
    Entry("text", "Text to image", "", (APPLE,), ("apple.png",)),
    Entry(
        "strength",
        "Image to image",
        "The same apple at strength 0, 0.4, 0.6, 0.8 and 1: 0 gives it back through the autoencoder, 1 ignores it.",
        *variants('sfumato generate "noto green apple" --image apple.png --seed 3', "--strength", "0 0.4 0.6 0.8 1"),
        (APPLE,),
    ),
    Entry(
        "inpainting",
        "Inpainting",
        "White is repainted; everything else is the same to the bit.",
        (
            'sfumato generate "noto grinning face" --seed 5 -o face.png',
            MASK.format(box="0, 0, 128, 66"),
            'sfumato generate "noto crying face" --image face.png --mask mask.png --seed 1 -o crying.png',
        ),
        ("face.png", "mask.png", "crying.png"),
    ),
    Entry(
        "outpainting",
        "Outpainting",
        "A band inside the old border is repainted too, so that the seam does not show.",
        ('sfumato generate "noto red apple" --image apple.png --outpaint 0,32,0,0 --seed 4 -o taller.png',),
        ("apple.png", "taller.png"),
        (APPLE,),
    ),
    Entry(
        "weights",
        "Weighted words",
        "A weight of 0, 1 and 2 on the colour.",
        *variants("sfumato generate --seed 11", "", '"noto (green:0) apple" "noto green apple" "noto (green:2) apple"'),
    ),
)


def run(command: str, folder: Path) -> None:
    """One command in `folder`, with this environment's programs."""
    program, *arguments = shlex.split(command)
    start = [sys.executable] if program == "python" else [sys.executable, "-m", "sfumato"]
    quiet = ["--quiet"] if program == "sfumato" else []
    subprocess.run([*start, *arguments, *quiet], cwd=folder, check=True)


def make(entry: Entry) -> None:
    """The strip of an entry's pictures, docs/gallery/NAME.webp."""
    with tempfile.TemporaryDirectory() as work:
        for command in (*entry.prepare, *entry.commands):
            run(command, Path(work))
        pictures = [Image.open(Path(work) / name).convert("RGB") for name in entry.pictures]
    height = max(picture.height for picture in pictures)
    strip = Image.new("RGB", (sum(picture.width + 8 for picture in pictures) - 8, height), "white")
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, height - picture.height))
        left += picture.width + 8
    strip.save(DOCS / "gallery" / f"{entry.name}.webp", quality=90)
