"""How much of a denoiser's step token merging saves: merged and unmerged steps in turn, in one process.

    python benchmarks/token_merging.py ./sd15-int8 --size 512x512 --size 1024x1024 --ratio 0.5
    python benchmarks/token_merging.py ./sd15-int8 --published ./stable-diffusion-v1-5

Prints the median over the runs of each merged step's share of the unmerged one before it. --published adds
the published PyTorch patch (tomesd 0.1.3, which must be installed), traced from a checkpoint, against the
same checkpoint's UNet without it, both in OpenVINO and in 16 bits.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.artifact import load_artifact
from sfumato.graphs.processors import fit_processor
from sfumato.graphs.token_merging import merge_tokens
from sfumato.runtime.devices import Device, core
from sfumato.runtime.parameters import parse_size

TEXT_TOKENS = {"unet": 77, "mmdit": 154}
Step = Callable[[], float]


def inputs_of(model: Any, kind: str, size: tuple[int, int], batch: int = 2) -> dict[str, Any]:
    """A step's inputs, of noise: guided where batch is 2; size: of the latents, width and height."""
    generator = np.random.Generator(np.random.PCG64(0))
    inputs: dict[str, Any] = {}
    for port in model.inputs:
        shape = port.get_partial_shape()
        rank = shape.rank.get_length()
        if rank == 1:
            fractional = port.element_type.is_real()
            inputs[port.any_name] = np.full(batch, 500.0, np.float32) if fractional else np.array([500])
        else:
            channels = shape[1 if rank == 4 else rank - 1].get_length()
            shapes = {2: (channels,), 3: (TEXT_TOKENS[kind], channels), 4: (channels, *size[::-1])}
            full = (batch, *shapes[rank])
            inputs[port.any_name] = generator.standard_normal(full, np.float32)
    return inputs


def compiled(model: Any, inputs: dict[str, Any], device: Device, **options: int) -> Any:
    """A denoiser compiled for inputs of these shapes as a pipeline does; options: of OpenVINO, besides."""
    model.reshape({name: list(value.shape) for name, value in inputs.items()})
    if device.takes_fitting:
        fit_processor(model)
    return core().compile_model(model, device.name, device.options | options)


def step_of(model: Any, kind: str, size: tuple[int, int], threads: int) -> Step:
    """Compile for one size; what comes back runs one step and returns its seconds."""
    inputs = inputs_of(model, kind, size)
    return timed(compiled(model, inputs, Device(threads=threads or None)), inputs)


def timed(network: Any, inputs: dict[str, Any]) -> Step:
    """Runs of a compiled network that return their seconds."""
    request = network.create_infer_request()

    def step() -> float:
        started = time.perf_counter()
        request.infer(inputs)
        return time.perf_counter() - started

    return step


def compared(whole: Step, merged: Step, runs: int) -> dict[str, Any]:
    """Both in turn, after one run each that does not count."""
    whole()
    merged()
    pairs = [(whole(), merged()) for _ in range(runs)]
    return {
        "seconds": statistics.median(seconds for seconds, _ in pairs),
        "merged_seconds": statistics.median(seconds for _, seconds in pairs),
        "ratio_of_times": statistics.median(merged / whole for whole, merged in pairs),
    }


def artifact_rows(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each size, method and ratio."""
    artifact = load_artifact(folder)
    family, factor = artifact.family, artifact.manifest.latents.factor
    kind = family.component(family.denoiser).kind
    xml = folder / family.denoiser / "openvino_model.xml"
    for size in options.size:
        latents = (size[0] // factor, size[1] // factor)
        whole = step_of(core().read_model(xml), kind, latents, options.threads)
        for method, ratio in product(options.method, options.ratio):
            model = core().read_model(xml)
            merge_tokens(model, ratio, method)
            merged = step_of(model, kind, latents, options.threads)
            del model
            measured = compared(whole, merged, options.runs)
            yield {"model": folder.name, "size": size, "method": method, "ratio": ratio} | measured


def published_rows(checkpoint: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The same for tomesd's patch; one trace for each size, as its counts are constants."""
    import openvino
    import tomesd  # type: ignore[import-not-found]
    import torch
    from diffusers import UNet2DConditionModel

    from sfumato.convert.components import UNet
    from sfumato.graphs.compress import to_float16

    unet = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet").eval()
    width = unet.config.cross_attention_dim

    def traced(latents: tuple[int, int]) -> Any:
        sample = torch.randn(2, unet.config.in_channels, *latents[::-1])
        example = {"sample": sample, "timestep": torch.tensor([500])}
        example["encoder_hidden_states"] = torch.randn(2, TEXT_TOKENS["unet"], width)
        with torch.no_grad():
            model = openvino.convert_model(UNet(unet), example_input=example)
        for port, name in zip(model.inputs, example, strict=True):
            port.get_tensor().set_names({name})
        for port, value in zip(model.inputs, example.values(), strict=True):
            port.get_node().set_partial_shape(openvino.PartialShape(list(value.shape)))
        model.validate_nodes_and_infer_types()
        to_float16(model, lambda: None)
        return model

    for size, ratio in product(options.size, options.ratio):
        latents = (size[0] // 8, size[1] // 8)
        whole = step_of(traced(latents), "unet", latents, options.threads)
        tomesd.apply_patch(unet, ratio=ratio, use_rand=False)
        merged = step_of(traced(latents), "unet", latents, options.threads)
        tomesd.remove_patch(unet)
        row = {"model": checkpoint.name, "size": size, "method": "tomesd", "ratio": ratio}
        yield row | compared(whole, merged, options.runs)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("models", nargs="*", type=Path, help="model folders that do not merge yet")
    parser.add_argument("--size", action="append", type=parse_size, help="WxH in pixels; default 512x512")
    parser.add_argument("--ratio", action="append", type=float, help="default 0.5")
    parser.add_argument("--method", action="append", choices=["match", "pool"], help="default both")
    parser.add_argument("--published", type=Path, metavar="CHECKPOINT", help="also tomesd's patch")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="OpenVINO's own choice by default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.size = options.size or [(512, 512)]
    options.ratio, options.method = options.ratio or [0.5], options.method or ["match", "pool"]
    return options


def main() -> None:
    options = parse()
    sources = [artifact_rows(folder, options) for folder in options.models]
    if options.published:
        sources.append(published_rows(options.published, options))
    rows = []
    for row in (each for source in sources for each in source):
        rows.append(row)
        print(
            f"{row['model']:16} {row['size'][0]}x{row['size'][1]} {row['method']:6} {row['ratio']:.2f}"
            f" {row['seconds']:8.3f} s {row['merged_seconds']:8.3f} s {row['ratio_of_times']:.3f}",
            file=sys.stderr if options.json else sys.stdout,
            flush=True,
        )
    if options.json:
        print(json.dumps({"rows": rows, "runs": options.runs, "threads": options.threads}))


if __name__ == "__main__":
    main()
