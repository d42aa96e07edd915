"""How well models draw what prompts ask for, as the evaluator reads it, beside real pictures of the captions.

    python benchmarks/fidelity.py mini                 # 500 training captions, 20 steps
    python benchmarks/fidelity.py mini models/mini-sd --split pair --prompts 230   # pairs never seen together
    python benchmarks/fidelity.py models/mini-sd --lora lcm.safetensors --steps 4
    python benchmarks/fidelity.py models/mini-xl --refiner models/mini-xl-refiner
    python benchmarks/fidelity.py --captions captions.txt                 # the captions, for `compare`

MODEL is a model folder, the name of a known model, or a checkpoint, which is converted first (with the LoRA,
if one is given). Picture i is made with seed i; nothing is picked or left out.

R@1, R@5: share of the pictures whose own caption is the nearest, or among the five nearest, of all captions.
style: share whose style is read rightly. Frechet: distance of the evaluator's features from those of the real
pictures; it depends on how many there are, so that of as many other real pictures is given to compare with.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from sfumato import Pipeline, convert
from sfumato.compare import Evaluator, Reading, Scores, frechet_distance
from sfumato.errors import SfumatoError
from sfumato.train.embedded import captions, dataset

TILES = 10  # of the grid, each way
VAE = Path(__file__).parents[1] / "models/mini/vae"  # of checkpoints here that have none


@dataclass(frozen=True)
class Prompts:
    """Captions with their styles, and the real pictures (uint8 [n, 128, 128, 3]) that they belong to.

    others: real pictures of as many other captions, none where the split has too few.
    """

    captions: list[str]
    styles: list[str]
    pictures: np.ndarray
    others: np.ndarray


def draw(data: Path, split: str, count: int, seed: int) -> Prompts:
    pictures, records = dataset.load(data)
    chosen = captions.evaluation(records, split, count, seed)
    rows = [row for row, _ in chosen]
    rest = np.setdiff1d(dataset.indices(records, split), rows)
    rest = np.random.default_rng(seed).permutation(rest)[:count]
    return Prompts(
        captions=[caption for _, caption in chosen],
        styles=[records[row].style for row in rows],
        pictures=np.array(pictures[rows]),
        others=np.array(pictures[rest if len(rest) == count else rest[:0]]),
    )


def generate(model: str, prompts: Prompts, options: argparse.Namespace) -> tuple[list[Image.Image], float]:
    """One picture for each caption, and the seconds that each took on average after the first."""
    settings = {name: getattr(options, name) for name in ("steps", "guidance", "sampler", "switch_at")}
    with tempfile.TemporaryDirectory() as scratch:
        pipe = opened(model, Path(scratch), options.lora, options.threads)
        refiner = None
        if options.refiner:
            refiner = opened(options.refiner, Path(scratch), [], options.threads)
        images: list[Image.Image] = []
        began = 0.0
        for seed, caption in enumerate(tqdm(prompts.captions, desc=Path(model).name, mininterval=5)):
            made = pipe(caption, seed=seed, refiner=refiner, **settings)
            images.append(made.images[0])
            began = began or time.perf_counter()
        return images, (time.perf_counter() - began) / max(1, len(images) - 1)


def opened(model: str, scratch: Path, loras: list[str], threads: int | None) -> Pipeline:
    """The pipeline of a model folder, or of a checkpoint that is converted into `scratch`."""
    if (Path(model) / "model_index.json").is_file() and not (Path(model) / "sfumato.json").is_file():
        vae = None if (Path(model) / "vae").is_dir() else VAE
        adapters = [(file, 1.0) for file in loras]
        model = str(convert(model, scratch / Path(model).name, vae=vae, loras=adapters).path)
    elif loras:
        raise SystemExit(f"error: {model}: --lora needs a checkpoint, not a model folder")
    return Pipeline.load(model, threads=threads)


def measure(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """A row of figures for the real pictures, then one for each model."""
    evaluator = Evaluator(threads=options.threads)
    prompts = draw(options.data, options.split, options.prompts, options.seed)
    if options.captions:
        options.captions.write_text("".join(f"{caption}\n" for caption in prompts.captions), encoding="utf-8")
    real = evaluator.read(prompts.pictures)

    def score(seen: Reading) -> Scores:
        return evaluator.score(seen, prompts.captions, prompts.styles, real)

    ideal = score(real)
    yield {"model": "real pictures", **rounded(asdict(ideal))}
    if len(prompts.others):
        others = evaluator.read(prompts.others)
        frechet = frechet_distance(others.features, real.features)
        yield {"model": "other real pictures", **rounded({"frechet": frechet})}
    for model in options.models:
        images, seconds = generate(model, prompts, options)
        scores = score(evaluator.read(images))
        shares = {"r1_of_real": scores.r1 / ideal.r1, "r5_of_real": scores.r5 / ideal.r5}
        yield {"model": model, **rounded(asdict(scores) | shares | {"seconds": seconds})}
        if options.grid:
            path = options.grid
            if len(options.models) > 1:
                path = path.with_stem(f"{path.stem}-{Path(model).name}")
            save_grid(images[: TILES * TILES], path)


def save_grid(images: list[Image.Image], path: Path) -> None:
    """The images in rows of ten, in their order."""
    width, height = images[0].size
    grid = Image.new("RGB", (TILES * width, -(-len(images) // TILES) * height), "white")
    for index, image in enumerate(images):
        grid.paste(image, (index % TILES * width, index // TILES * height))
    grid.save(path, quality=90)


def rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}


def line(row: dict[str, object]) -> str:
    def text(name: str, form: str) -> str:
        value = row.get(name)
        return "" if value is None else format(value, form)

    cells = [text("r1", ".1%"), text("r1_of_real", ".1%"), text("r5", ".1%"), text("style", ".1%")]
    cells += [text("frechet", ".3f"), text("seconds", ".2f")]
    return f"{row['model']!s:<24}" + "".join(f"{cell:>10}" for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE", help="for checkpoints; can be repeated"
    )
    parser.add_argument("--refiner", metavar="MODEL", help="goes the last part of the way")
    parser.add_argument("--switch-at", type=float, help="share of the way before it takes over")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--sampler")
    parser.add_argument("--split", choices=("train", "pair", "concept"), default="train")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of captions")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="write them there, one a line")
    parser.add_argument("--grid", type=Path, metavar="FILE", help="the first 100 pictures in one")
    options = parser.parse_args()
    names = ("R@1", "of real", "R@5", "style", "Frechet", "s/picture")
    print(
        f"{options.split + ', ' + str(options.steps) + ' steps':<24}"
        + "".join(f"{name:>10}" for name in names)
    )
    rows = []
    try:
        for row in measure(options):
            print(line(row), flush=True)
            rows.append(row)
    except SfumatoError as error:
        parser.error(str(error))
    if options.json:
        settings = {
            name: getattr(options, name)
            for name in ("split", "prompts", "steps", "guidance", "sampler", "seed", "refiner", "switch_at")
        }
        options.json.write_text(
            json.dumps(settings | {"loras": options.lora, "models": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
