"""What the evaluator makes of pictures whose caption is known: how much its figures can be trusted.

    python benchmarks/evaluator.py
    python benchmarks/evaluator.py --evaluator runs/evaluator/evaluator

Real pictures should be read rightly, also after the autoencoder that all embedded models decode by; pictures
in another style than the caption's should fail by style alone, and noise and shuffled captions by all.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from sfumato.compare import Evaluator
from sfumato.errors import SfumatoError
from sfumato.train.embedded import captions, dataset
from sfumato.train.embedded.latents import encode

LATENT_NOISE = 0.3  # standard deviation, of latents of variance 1
BATCH = 64

Case = tuple[str, np.ndarray, list[str], list[str]]


def decoded(vae: AutoencoderKL, pictures: np.ndarray, noise: float) -> np.ndarray:
    """Pictures (uint8 [n, 128, 128, 3]) after both halves of the autoencoder, with noise in between."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    with torch.no_grad():
        for latents in encode(vae, pictures).split(BATCH):
            drawn = torch.randn(latents.shape, generator=generator)
            made = vae.decode(latents + noise / vae.config.scaling_factor * drawn).sample
            parts.append(((made.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(parts).permute(0, 2, 3, 1).numpy()


def in_other_styles(records: list[dataset.Record], rows: list[int]) -> list[tuple[int, int]]:
    """Of the rows whose concept has a picture in another style: their position, and that picture's row."""
    drawn: dict[str, list[int]] = defaultdict(list)
    for row, record in enumerate(records):
        if record.background == "white":
            drawn[record.concept].append(row)
    pairs = []
    for position, row in enumerate(rows):
        others = [
            other for other in drawn[records[row].concept] if records[other].style != records[row].style
        ]
        if others:
            pairs.append((position, others[position % len(others)]))
    return pairs


def cases(data: Path, vae: AutoencoderKL, count: int) -> Iterator[Case]:
    """Each case's name, pictures, captions and the captions' styles."""
    pictures, records = dataset.load(data)

    def drawn(split: str, count: int) -> tuple[list[int], list[str], list[str]]:
        chosen = captions.evaluation(records, split, count)
        rows = [row for row, _ in chosen]
        return rows, [caption for _, caption in chosen], [records[row].style for row in rows]

    rows, texts, styles = drawn("train", count)
    real = np.array(pictures[rows])
    yield "real", real, texts, styles
    yield "real, through the autoencoder", decoded(vae, real, 0), texts, styles
    yield f"the same, noise of {LATENT_NOISE} on the latents", decoded(vae, real, LATENT_NOISE), texts, styles
    pairs, their_texts, their_styles = drawn("pair", 230)
    yield "real, 230 held-out pairs", np.array(pictures[pairs]), their_texts, their_styles
    others = in_other_styles(records, rows)
    kept = [position for position, _ in others]
    wrong = np.array(pictures[[row for _, row in others]])
    yield f"in a wrong style ({len(kept)})", wrong, [texts[i] for i in kept], [styles[i] for i in kept]
    yield "captions shuffled", np.roll(real, 1, axis=0), texts, styles
    noise = np.random.default_rng(0).integers(0, 256, real.shape, np.uint8)
    yield "noise", noise, texts, styles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--evaluator", type=Path, metavar="FOLDER", help="by default the one that ships")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--vae", type=Path, default=Path("models/mini/vae"))
    parser.add_argument("--pictures", type=int, default=500)
    options = parser.parse_args()
    print(f"{'pictures':<42}" + "".join(f"{name:>10}" for name in ("R@1", "R@5", "style")))
    try:
        evaluator = Evaluator(options.evaluator)
        vae = AutoencoderKL.from_pretrained(options.vae).float()
        for name, pictures, texts, styles in cases(options.data, vae, options.pictures):
            seen = evaluator.read(pictures)
            scores = evaluator.score(seen, texts, styles, seen)
            figures = (scores.r1, scores.r5, scores.style)
            print(f"{name:<42}" + "".join(f"{figure:>10.1%}" for figure in figures), flush=True)
    except SfumatoError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
