"""Where to cut a denoiser for reuse between steps: what the rest of a step costs, and how near pictures stay.

    python benchmarks/cut.py ./sd15-int8 --size 512x512 --prompts 0        # times alone
    python benchmarks/cut.py ./mini-sd --depths 1,2,3,6 --prompts 40 --steps 50

The depth is that of `sfumato.graphs.deep_features`: how much of the network the steps between key steps run.
share: median of the rest's time by the whole network's just before it, both compiled for the size as a
pipeline does. PSNR and distance are against pictures whose steps all run whole, for each way of reuse at the
key steps that ship. As many steps between run the rest as ship, too, or all of them with --rest-every 1.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from likeness import Against, prompts_of
from token_merging import compared, compiled, inputs_of, timed

from sfumato import Pipeline
from sfumato.artifact import Artifact
from sfumato.graphs.deep_features import FEATURES, take_features, tell_features
from sfumato.manifest import Reuse
from sfumato.runtime.devices import Device, core
from sfumato.runtime.parameters import parse_size
from sfumato.runtime.reuse import PLANS

WAYS: tuple[Reuse, ...] = ("balanced", "fast")


def shares(artifact: Artifact, depth: int, size: tuple[int, int], runs: int) -> tuple[float, float]:
    """Median seconds of the rest of a guided step, and their share of the whole one's; size: in pixels."""
    family, factor = artifact.family, artifact.manifest.latents.factor
    kind = family.component(family.denoiser).kind
    graph = artifact.path / family.denoiser / "openvino_model.xml"
    telling, taking = core().read_model(graph), core().read_model(graph)
    inputs = inputs_of(telling, kind, (size[0] // factor, size[1] // factor))
    tell_features(telling, depth)
    whole = compiled(telling, inputs, Device())
    features = whole(inputs)[FEATURES]
    take_features(taking, depth)
    taken = {port.any_name for port in taking.inputs}
    left = {name: value for name, value in (inputs | {FEATURES: features}).items() if name in taken}
    rest = compiled(taking, left, Device())
    found = compared(timed(whole, inputs), timed(rest, left), runs)
    return found["merged_seconds"], found["ratio_of_times"]


def pictures(pipe: Pipeline, prompts: list[str], steps: int | None, reuse: Reuse) -> Any:
    """uint8 [prompts, height, width, 3]; picture i has seed i."""
    made = (pipe(prompt, seed=seed, steps=steps, reuse=reuse) for seed, prompt in enumerate(prompts))
    return np.stack([np.asarray(each.images[0]) for each in made])


def qualities(pipe: Pipeline, prompts: list[str], options: argparse.Namespace) -> Iterator[str]:
    """A line for each depth and way."""
    family = pipe.artifact.family
    kind = family.component(family.denoiser).kind
    against = Against(prompts)
    against.likeness(pictures(pipe, prompts, options.steps, "off"))
    for depth, way in product(options.depths, WAYS):
        shipped = PLANS[kind, way]
        PLANS[kind, way] = replace(shipped, depth=depth, rest_every=options.rest_every or shipped.rest_every)
        figures = against.likeness(pictures(pipe, prompts, options.steps, way))
        PLANS[kind, way] = shipped
        yield f"depth {depth} {way:9} {figures.psnr:.2f} dB, distance {figures.distance:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="a model folder, or the name of a known model")
    parser.add_argument(
        "--depths", type=lambda text: [int(each) for each in text.split(",")], default="1,2,3"
    )
    parser.add_argument("--size", type=parse_size, default="512x512", help="WxH of the steps that are timed")
    parser.add_argument("--runs", type=int, default=5, help="of each network; 0 times nothing")
    parser.add_argument("--prompts", type=int, default=20, help="how many; 0 makes no pictures")
    parser.add_argument("--file", type=Path, help="a prompt a line; else captions that ship")
    parser.add_argument("--steps", type=int, help="the model's own by default")
    parser.add_argument("--rest-every", type=int, help="of the steps between, one in so many runs the rest")
    options = parser.parse_args()
    pipe = Pipeline.load(options.model)
    for depth in options.depths if options.runs else ():
        took, share = shares(pipe.artifact, depth, options.size, options.runs)
        print(f"depth {depth} {took:8.3f} s, {share:.3f} of a whole step", flush=True)
    if options.prompts:
        for line in qualities(pipe, prompts_of(pipe.artifact, options.file, options.prompts), options):
            print(line, flush=True)


if __name__ == "__main__":
    main()
