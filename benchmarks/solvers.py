"""How few steps which solver needs for the picture that many steps end in: PSNR by solver, spacing and steps.

    python benchmarks/solvers.py ./mini-sd
    python benchmarks/solvers.py ./mini-sd --solver dpmpp-2m --solver unipc:karras --steps 6,8,10 --json

A deterministic solver follows one curve from the noise to a picture, which more steps follow more closely.
The picture held against is the same prompt's and seed's with --reference steps of DDIM. Solvers whose noise
begins lower (diffusers' DPM++ 2M and UniPC with "leading" timesteps, which Sfumato follows number by
number) take another curve, and end in another picture however many steps they take. UNets alone: flow models
have one deterministic solver.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from likeness import mean_psnr, prompts_of

from sfumato import Pipeline

EXACT = "ddim"
SOLVERS = (EXACT, "euler", "dpmpp-2m", "dpmpp-2m:karras", "dpmpp-2m:ays", "unipc", "unipc:karras")


def pictures(
    pipe: Pipeline, prompts: list[str], solver: str, steps: int, guidance: float | None
) -> list[Any]:
    """Picture i of prompt i with seed i, every step in full; solver: SAMPLER or SAMPLER:SPACING."""
    sampler, _, spacing = solver.partition(":")
    given = {"sampler": sampler, "spacing": spacing or None, "steps": steps, "guidance": guidance}
    every = {"reuse": "off", "guidance_every": 1}
    return [
        np.asarray(pipe(prompt, seed=seed, **given, **every).images[0]) for seed, prompt in enumerate(prompts)
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="a model folder, or the name of a known model")
    parser.add_argument("--solver", action="append", metavar="SAMPLER[:SPACING]", help="deterministic ones")
    parser.add_argument("--steps", default="6,8,10,12,16,20,25,50")
    parser.add_argument("--reference", type=int, default=200, help="steps of the pictures held against")
    parser.add_argument("--guidance", type=float, help="the model's own by default")
    parser.add_argument("--prompts", type=int, default=16, help="how many")
    parser.add_argument("--file", type=Path, help="a prompt a line; else captions that ship")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.solver = options.solver or list(SOLVERS)
    options.steps = [int(steps) for steps in options.steps.split(",")]
    return options


def main() -> None:
    options = parse()
    pipe = Pipeline.load(options.model, threads=options.threads)
    prompts = prompts_of(pipe.artifact, options.file, options.prompts)
    references = pictures(pipe, prompts, EXACT, options.reference, options.guidance)

    def nearness(solver: str, steps: int) -> float:
        return mean_psnr(pictures(pipe, prompts, solver, steps, options.guidance), references)

    rows = []
    for solver in options.solver:
        rows.append({"solver": solver} | {str(n): nearness(solver, n) for n in options.steps})
        print(rows[-1], file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps({"reference": options.reference, "prompts": options.prompts, "rows": rows}))
        return
    print(f"PSNR to {options.reference} steps of {EXACT}, {options.prompts} pictures, in dB\n")
    print("| steps | " + " | ".join(map(str, options.steps)) + " |")
    print("|---" * (len(options.steps) + 1) + "|")
    for row in rows:
        print(f"| {row['solver']} | " + " | ".join(f"{row[str(n)]:.1f}" for n in options.steps) + " |")


if __name__ == "__main__":
    main()
