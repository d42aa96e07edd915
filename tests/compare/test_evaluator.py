"""The evaluator that ships: intact, free of PyTorch, and right about what anyone can draw."""

import subprocess
import sys

import numpy as np
from PIL import Image, ImageDraw

from sfumato.compare import Evaluator, recall

COLOURS = {"red": (221, 46, 68), "blue": (30, 110, 220), "green": (80, 170, 60), "yellow": (253, 203, 88)}


def shape(kind, colour, side=128, margin=10):
    image = Image.new("RGB", (side, side), "white")
    box = (margin, margin, side - margin, side - margin)
    getattr(ImageDraw.Draw(image), kind)(box, fill=colour)
    return image


def test_it_reads_colours_and_shapes():
    captions = [f"flat {colour} {name}" for name in ("circle", "square") for colour in COLOURS]
    kinds = ["ellipse"] * len(COLOURS) + ["rectangle"] * len(COLOURS)
    pictures = [shape(kind, colour) for kind, colour in zip(kinds, [*COLOURS.values()] * 2, strict=True)]
    evaluator = Evaluator()
    seen = evaluator.read(pictures)
    assert recall(seen.embedding, evaluator.embed(captions), captions, 1) == 1
    assert recall(seen.embedding, evaluator.embed(captions[::-1]), captions, 1) == 0
    np.testing.assert_allclose(np.linalg.norm(seen.embedding, axis=1), 1, rtol=1e-5)


def test_sizes_make_little_difference():
    evaluator = Evaluator()
    small, large = (
        evaluator.read([shape("ellipse", COLOURS["red"], side, side // 8)]) for side in (128, 512)
    )
    assert float((small.embedding @ large.embedding.T).item()) > 0.95


def test_distance_follows_the_eye():
    evaluator = Evaluator()
    red, crimson, blue = (
        shape("ellipse", colour) for colour in ((221, 46, 68), (205, 40, 60), (30, 110, 220))
    )
    near, far = evaluator.distance([red, red], [crimson, blue])
    assert 0 < near < far / 3


def test_it_needs_no_torch():
    code = "import sys; from sfumato.compare import Evaluator; Evaluator().embed(['noto red apple']); "
    code += "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
