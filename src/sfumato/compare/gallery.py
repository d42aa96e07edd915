"""Pictures and difference maps as data URIs: what the report's page shows of each sample."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import combinations
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .fidelity import psnr
from .judge import pixels
from .records import Sample

LOSSLESS_PIXELS = 8_000_000
"""Up to so many in all, pictures are embedded as they are; WebP of quality 90 keeps larger reports small."""
MAP_SIDE = 512
AMPLIFICATIONS = (64, 32, 16, 8, 4, 2, 1)

# From no difference to the largest: darkness to light, in equal steps for the eye.
SHADES = ((0, 6, 6, 14), (64, 74, 26, 96), (128, 186, 54, 84), (192, 246, 140, 50), (255, 253, 246, 205))


@dataclass(frozen=True)
class Difference:
    """How two models' pictures of one sample differ; first, second: the models' places in the report."""

    first: int
    second: int
    psnr: float
    amplification: int
    uri: str


def picture_uris(samples: Sequence[Sample], names: Sequence[str], folder: Path) -> list[list[str]]:
    """Each sample's pictures, in the order of names."""
    files = [[folder / sample.pictures[name] for name in names] for sample in samples]
    with Image.open(files[0][0]) as first:
        total = first.width * first.height * len(samples) * len(names)
    how = {"lossless": True} if total <= LOSSLESS_PIXELS else {"quality": 90}
    return [[_uri(Image.fromarray(pixels(file)), **how) for file in row] for row in files]


def amplifications(
    samples: Sequence[Sample], names: Sequence[str], folder: Path
) -> dict[tuple[int, int], int]:
    """For each pair, the strongest that leaves 99.5% of a typical sample's pixels below white."""
    levels: dict[tuple[int, int], list[float]] = {pair: [] for pair in combinations(range(len(names)), 2)}
    for sample in samples:
        pictures = [pixels(folder / sample.pictures[name]) for name in names]
        for (first, second), found in levels.items():
            found.append(float(np.quantile(_difference(pictures[first], pictures[second]), 0.995)))
    return {
        pair: next((by for by in AMPLIFICATIONS if by * median(found) <= 255), 1)
        for pair, found in levels.items()
    }


def differences(
    sample: Sample, names: Sequence[str], folder: Path, amplified: dict[tuple[int, int], int]
) -> list[Difference]:
    """Maps of one sample for every pair of models, from the PNGs."""
    pictures = [pixels(folder / sample.pictures[name]) for name in names]
    return [
        Difference(
            first,
            second,
            psnr(pictures[first], pictures[second]),
            by,
            _map(pictures[first], pictures[second], by),
        )
        for (first, second), by in amplified.items()
    ]


def shade(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours [..., 3] of differences that were amplified."""
    positions, *colours = zip(*SHADES, strict=True)
    table = np.stack([np.interp(np.arange(256), positions, channel) for channel in colours], -1)
    return np.asarray(table.round().astype(np.uint8)[levels])


def _difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The largest absolute difference of a pixel's channels, uint8 [height, width]."""
    return np.asarray((np.maximum(a, b) - np.minimum(a, b)).max(-1), np.uint8)


def _map(a: NDArray[np.uint8], b: NDArray[np.uint8], by: int) -> str:
    levels = np.minimum(_difference(a, b).astype(np.uint16) * by, 255).astype(np.uint8)
    image = Image.fromarray(levels)
    image.thumbnail((MAP_SIDE, MAP_SIDE), Image.Resampling.BOX)
    return _uri(Image.fromarray(shade(np.asarray(image))), quality=85)


def _uri(image: Image.Image, **how: float) -> str:
    buffer = BytesIO()
    image.save(buffer, "WEBP", **how)
    return f"data:image/webp;base64,{b64encode(buffer.getvalue()).decode()}"
