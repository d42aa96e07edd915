"""Both halves of guidance, three ways: one run of two, two runs in turn, and two runs at once on two streams.

    python benchmarks/streams.py ./sd15-int8 --size 512x512
    python benchmarks/streams.py ./sd15-int8 ./mini --size 128x128 --runs 9

The denoiser is compiled as a pipeline does, all processors' threads for the first two ways, half of them for
each of two streams. The ways take turns in one process; prints the medians and, beside them, the median of
each run's share of the first way's time just before it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from token_merging import compiled, inputs_of

from sfumato.artifact import find_model, load_artifact
from sfumato.runtime.devices import Device, core
from sfumato.runtime.parameters import parse_size

Way = Callable[[], Any]


def ways_of(folder: Path, size: tuple[int, int]) -> dict[str, Way]:
    """The three ways, each ready to run; size: of the picture, width and height in pixels."""
    artifact = load_artifact(folder)
    family, factor = artifact.family, artifact.manifest.latents.factor
    kind = family.component(family.denoiser).kind
    latents = (size[0] // factor, size[1] // factor)

    def network(batch: int, **options: int) -> tuple[Any, dict[str, Any]]:
        model = core().read_model(folder / family.denoiser / "openvino_model.xml")
        inputs = inputs_of(model, kind, latents, batch)
        return compiled(model, inputs, Device(), **options), inputs

    both, pair = network(2)
    one, half = network(1)
    streams, _ = network(1, NUM_STREAMS=2)
    whole, single = both.create_infer_request(), one.create_infer_request()
    requests = [streams.create_infer_request() for _ in range(2)]

    def in_turn() -> None:
        for _ in range(2):
            single.infer(half)

    def at_once() -> None:
        for request in requests:
            request.start_async(half)
        for request in requests:
            request.wait()

    return {"one run of two": lambda: whole.infer(pair), "two in turn": in_turn, "two streams": at_once}


def timed(way: Way) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--size", type=parse_size, default="512x512", help="WxH in pixels")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    for model in options.models:
        ways = ways_of(find_model(model), options.size)
        for way in ways.values():
            way()
        rounds = [{name: timed(way) for name, way in ways.items()} for _ in range(options.runs)]
        for name in ways:
            seconds = statistics.median(each[name] for each in rounds)
            share = statistics.median(each[name] / each["one run of two"] for each in rounds)
            print(f"{model:24} {name:16} {seconds:8.3f} s {share:6.3f}", flush=True)


if __name__ == "__main__":
    main()
