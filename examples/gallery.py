"""Makes docs/gallery.md and its pictures: one for every feature, from the commands that stand below it.

    python examples/gallery.py [NAME ...]

With names, only those pictures are made anew. Needs the models that `make models` converts.
"""

import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

EXAMPLES = Path(__file__).resolve().parent
DOCS = EXAMPLES.parent / "docs"
APPLE = 'sfumato generate "noto red apple" --seed 7 -o apple.png'
GREEN = 'sfumato generate "noto green apple" --image apple.png --seed 3'
CAT = 'sfumato generate "fluent smiling cat" --seed 2'
SD_FACE = 'sfumato generate "noto grinning face" -m mini-sd --seed 2'
XL_FACE = 'sfumato generate "noto grinning face" -m mini-xl --seed 5'
MASK = (
    "python -c \"from PIL import Image; mask = Image.new('L', (128, 128)); "
    "mask.paste(255, (0, 0, 128, 66)); mask.save('mask.png')\""
)


@dataclass(frozen=True)
class Entry:
    """One feature. pictures: what is shown, left to right. prepare: commands that are not shown."""

    name: str
    title: str
    text: str
    commands: tuple[str, ...]
    pictures: tuple[str, ...]
    prepare: tuple[str, ...] = ()


def variants(command: str, *values: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The command with each value in place of its braces, and the pictures."""
    pictures = tuple(f"{index}.png" for index in range(len(values)))
    commands = (f"{command} -o {name}".format(value) for value, name in zip(values, pictures, strict=True))
    return tuple(commands), pictures


ENTRIES = (
    Entry("text", "Text to image", "", (APPLE,), ("apple.png",)),
    Entry(
        "strength",
        "Image to image",
        "From the apple above: strength 0 gives it back through the autoencoder, 1 ignores it.",
        *variants(f"{GREEN} --strength {{}}", "0", "0.4", "0.6", "0.8", "1"),
        (APPLE,),
    ),
    Entry(
        "inpainting",
        "Inpainting",
        "What is white in the mask is repainted; everything else is the same to the bit.",
        (
            'sfumato generate "noto grinning face" --seed 5 -o face.png',
            MASK,
            'sfumato generate "noto smiling face with sunglasses" --image face.png --mask mask.png --seed 1 '
            "-o cool.png",
        ),
        ("face.png", "mask.png", "cool.png"),
    ),
    Entry(
        "outpainting",
        "Outpainting",
        "`mini` has only seen icons that fill their square, so it adds parts of icons: here leaves.",
        ('sfumato generate "noto red apple" --image apple.png --outpaint 0,32,0,0 --seed 4 -o taller.png',),
        ("apple.png", "taller.png"),
        (APPLE,),
    ),
    Entry(
        "refiner",
        "Two stages",
        "The base alone, with its refiner for the last fifth of the noise, and for the last two fifths.",
        (
            f"{XL_FACE} -o alone.png",
            f"{XL_FACE} --refiner mini-xl-refiner -o refined.png",
            f"{XL_FACE} --refiner mini-xl-refiner --switch-at 0.6 -o earlier.png",
        ),
        ("alone.png", "refined.png", "earlier.png"),
    ),
    Entry(
        "negative",
        "Negative prompt",
        "Without and with.",
        (
            'sfumato generate "noto apple" --seed 11 -o apple.png',
            'sfumato generate "noto apple" --negative red --seed 11 -o other.png',
        ),
        ("apple.png", "other.png"),
    ),
    Entry(
        "weights",
        "Weighted words",
        "`mini` takes most of a prompt from its pooled embedding, which weights do not touch: strong ones "
        "show a little.",
        *variants('sfumato generate "noto green {}" --seed 11', "apple", "(apple:2)", "(apple:3)"),
    ),
    Entry(
        "break",
        "BREAK, and prompts of several chunks",
        "The second part has a chunk of its own.",
        ('sfumato generate "noto red apple BREAK green leaf" --seed 11 -o both.png',),
        ("both.png",),
    ),
    Entry(
        "encoders",
        "A prompt for each text encoder",
        "The first reads of an apple, the second of a leaf.",
        ('sfumato generate "noto red apple" --prompt-2 "noto green leaf" --seed 11 -o two.png',),
        ("two.png",),
    ),
    Entry(
        "clip-skip",
        "Clip skip",
        "The encoders of `mini` have two layers: without one, little is left of the prompt.",
        *variants(f"{CAT} --clip-skip {{}}", "0", "1"),
    ),
    Entry(
        "spacing",
        "Spacings of the noise levels",
        "Eight steps each; `ays` (align your steps) was made for so few.",
        *variants(
            f"{SD_FACE} --sampler dpmpp-2m --steps 8 --spacing {{}}", "karras", "exponential", "beta", "ays"
        ),
    ),
    Entry(
        "shift",
        "Timestep shift of flow models",
        "",
        *variants(f"{CAT} --steps 6 --shift {{}}", "0.5", "2", "6"),
    ),
    Entry(
        "eta",
        "Eta",
        "Fresh noise in DDIM's steps: none, half, all.",
        *variants(f"{SD_FACE} --eta {{}}", "0", "0.5", "1"),
    ),
    Entry(
        "rescale",
        "Guidance rescale",
        "Strong guidance, without and with its contrast taken back.",
        *variants(f"{CAT} --guidance 12 --guidance-rescale {{}}", "0", "0.7"),
    ),
    Entry(
        "interval",
        "Guidance in an interval",
        "Everywhere, and between sigma 0.2 and 0.9 only: the other steps cost half.",
        *variants(f"{CAT} --guidance-interval {{}}", "0,100", "0.2,0.9"),
    ),
    Entry(
        "layers",
        "Skip-layer guidance",
        "Without, and away from what `mini` draws without its fourth layer.",
        (f"{CAT} -o plain.png", f"{CAT} --skip-layers 3 --skip-layers-scale 6 -o skipped.png"),
        ("plain.png", "skipped.png"),
    ),
    Entry(
        "preview",
        "Previews",
        "After 1, 4, 7, 10 and 20 of 20 steps, eight times as large as `step.preview()` gives them. "
        "`--preview FILE` keeps the newest one in a file.",
        ("python examples/previews.py",),
        tuple(f"{index}.png" for index in range(5)),
    ),
    Entry(
        "again",
        "A picture once more, from itself",
        "The PNG says how it was made; what is given besides goes first.",
        (
            'sfumato generate "noto grinning face" --seed 5 --steps 30 -o face.png',
            "sfumato generate --from-image face.png -o same.png",
            "sfumato generate --from-image face.png --seed 6 -o other.png",
        ),
        ("face.png", "same.png", "other.png"),
    ),
    Entry(
        "batch",
        "Many pictures",
        "A line for each, with its own settings.",
        ("sfumato batch examples/prompts.jsonl -o pictures",),
        ("pictures/heart.png", "pictures/face.png", "pictures/cool.png"),
    ),
)


def run(command: str, folder: Path) -> None:
    """One command in `folder`, with this environment's programs."""
    program, *arguments = shlex.split(command)
    start = {"python": [sys.executable], "sfumato": [sys.executable, "-m", "sfumato"]}[program]
    subprocess.run([*start, *arguments], cwd=folder, check=True)


def make(entry: Entry) -> None:
    """The strip of an entry's pictures, docs/gallery/NAME.webp."""
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "examples").symlink_to(EXAMPLES)
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


def page() -> str:
    """docs/gallery.md."""
    head = (
        "# Gallery\n\nA picture for every feature, each from the commands below it, with the small models "
        "that come with\nSfumato (`make models` converts them). `python examples/gallery.py` makes all "
        "of it anew. What the\nfeatures do stands in [generate.md](generate.md).\n"
    )
    return head + "".join(_section(entry) for entry in ENTRIES)


def _section(entry: Entry) -> str:
    text = f"{entry.text}\n\n" if entry.text else ""
    commands = "\n".join(entry.commands)
    picture = f"![{entry.title}](gallery/{entry.name}.webp)"
    return f"\n## {entry.title}\n\n{text}{picture}\n\n```\n{commands}\n```\n"


def main() -> None:
    (DOCS / "gallery").mkdir(exist_ok=True)
    for entry in ENTRIES:
        if not sys.argv[1:] or entry.name in sys.argv[1:]:
            make(entry)
    (DOCS / "gallery.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
