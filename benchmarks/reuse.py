"""What reuse between steps costs and brings: same prompts and seeds in every way, in turn, in one process.

    python benchmarks/reuse.py mini --steps 28 --prompts 500
    python benchmarks/reuse.py ./sd15-int8 --steps 50 --prompts 1 --runs 3       # times only, of one picture

The pictures are made prompt by prompt, once each way, so that what else the machine does falls on all ways
alike. share: median over the prompts of the denoising time, by that without reuse. Where the model draws what
its captions say (the embedded ones do), R@1 is among all prompts and distance and Frechet are in the
evaluator's features, both against the pictures without reuse.
"""

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
from likeness import Against, prompts_of

from sfumato import Pipeline
from sfumato.runtime.parameters import parse_size
from sfumato.runtime.reuse import Reuse

WAYS = get_args(Reuse)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("model", help="a model folder, or the name of a known model")
    parser.add_argument("--steps", type=int, help="the model's own by default")
    parser.add_argument("--size", type=parse_size, help="WxH; the model's own by default")
    parser.add_argument("--prompts", type=int, default=60, help="how many")
    parser.add_argument("--file", type=Path, help="a prompt a line; else captions that ship")
    parser.add_argument("--runs", type=int, default=1, help="pictures of each prompt, of further seeds")
    parser.add_argument("--token-merging", type=float)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="a folder to keep the pictures in")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def made(
    pipe: Pipeline, prompts: list[str], options: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Pictures (uint8 [n, height, width, 3]) and seconds of denoising, by way."""
    pictures: dict[str, list[Any]] = {way: [] for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for way in WAYS:
        pipe(prompts[0], steps=8, seed=0, size=options.size, reuse=way)  # loads
    for number, prompt in enumerate(prompts):
        for seed in range(number, number + options.runs * len(prompts), len(prompts)):
            for way in WAYS:
                result = pipe(prompt, steps=options.steps, seed=seed, size=options.size, reuse=way)
                pictures[way].append(np.asarray(result.images[0]))
                seconds[way].append(result.seconds["denoise"])
                if options.out:
                    options.out.mkdir(parents=True, exist_ok=True)
                    result.images[0].save(options.out / f"{number:04}-{seed}-{way}.png")
        print(f"prompt {number + 1}/{len(prompts)}", file=sys.stderr)
    return {way: np.stack(each) for way, each in pictures.items()}, seconds


def rows(
    pictures: dict[str, Any], seconds: dict[str, list[float]], prompts: list[str]
) -> list[dict[str, Any]]:
    against, found = Against(prompts), []
    for way in WAYS:
        pairs = zip(seconds[way], seconds["off"], strict=True)
        row = {
            "way": way,
            "seconds": statistics.median(seconds[way]),
            "share": statistics.median(own / whole for own, whole in pairs),
        }
        figures = asdict(against.likeness(pictures[way]))
        found.append(row | {name: figure for name, figure in figures.items() if figure is not None})
    return found


def main() -> None:
    options = parse()
    pipe = Pipeline.load(options.model, token_merging=options.token_merging, threads=options.threads)
    prompts = prompts_of(pipe.artifact, options.file, options.prompts)
    pictures, seconds = made(pipe, prompts, options)
    of_each = [prompt for prompt in prompts for _ in range(options.runs)]
    table = rows(pictures, seconds, of_each)
    for row in table:
        values = [f"{name} {value:.3f}" for name, value in row.items() if name != "way"]
        print(f"{row['way']:9}", ", ".join(values), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps({"model": options.model, "steps": options.steps, "rows": table}))


if __name__ == "__main__":
    main()
