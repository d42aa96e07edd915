"""NNCF against `sfumato optimize`: the denoiser in 8 bits by both, from the same samples.

    pip install nncf
    python benchmarks/nncf_peer.py mini-sd
    python benchmarks/nncf_peer.py models-folder --samples 200 --pictures 24 --steps 20

Both get the inputs of as many runs of the denoiser, on the same captions; only the denoiser is quantized. For
each: the time it took, the size, and how close pictures of other captions come to the float model's.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino

import sfumato
from sfumato import Pipeline
from sfumato.artifact import Artifact, find_model, load_artifact, seal, write_artifact
from sfumato.compare import psnr
from sfumato.optimize.prompts import negatives, pick, shipped
from sfumato.runtime.devices import Device, Devices
from sfumato.runtime.networks import Edit, Network

RECIPE = """
[denoiser]
mode = "int8"
smooth = "auto"
bias_correction = true
keep = ["first_convolution", "last_projection", "time_embedding"]
weights_only = ["skip_connections"]
"""


def record(artifact: Artifact, samples: int, steps: int) -> list[dict[str, Any]]:
    """Inputs of the denoiser while pictures are made, as the published recipe collects them."""
    inputs: list[dict[str, Any]] = []
    denoiser = artifact.family.denoiser

    class Recorder(Network):
        def __call__(self, given: Mapping[str, Any], outputs: Any) -> dict[str, Any]:
            inputs.append({name: np.array(value) for name, value in given.items()})
            return super().__call__(given, outputs)

    def make(found: Artifact, name: str, device: Device, edit: Edit | None) -> Network:
        return (Recorder if name == denoiser else Network)(found, name, device, edit)

    devices = Devices.parse("CPU", dict.fromkeys(artifact.manifest.components), Device("CPU", cached=False))
    pipe = Pipeline(artifact, devices, "high", make)
    captions, against = shipped(artifact.manifest.captions), negatives()
    for number, caption in enumerate(pick(captions, -(-samples // steps))):
        pipe(caption, negative_prompt=against[number % len(against)], steps=steps, seed=number)
    return inputs[:samples]


def by_nncf(artifact: Artifact, inputs: list[dict[str, Any]], out: Path) -> None:
    """A copy of the model whose denoiser went through nncf.quantize with the options for transformers."""
    import nncf

    denoiser = artifact.family.denoiser
    model = openvino.Core().read_model(artifact.path / denoiser / "openvino_model.xml")
    for port in model.inputs:
        if "timestep" in port.get_names():
            port.get_node().set_element_type(openvino.Type.f32)
    model.validate_nodes_and_infer_types()
    quantized = nncf.quantize(
        model, nncf.Dataset(inputs), subset_size=len(inputs), model_type=nncf.ModelType.TRANSFORMER
    )
    with write_artifact(out) as folder:
        shutil.copytree(artifact.path, folder, dirs_exist_ok=True)
        openvino.save_model(quantized, folder / denoiser / "openvino_model.xml", compress_to_fp16=True)
        fields = artifact.manifest.model_dump(mode="json", exclude={"files", "format", "sfumato"})
        seal(folder, **fields)


def pictures(model: Path, captions: list[str], steps: int) -> list[np.ndarray]:
    pipe = Pipeline.load(model)
    made = (pipe(caption, steps=steps, seed=1000 + i) for i, caption in enumerate(captions))
    return [np.asarray(result.images[0]) for result in made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    artifact = load_artifact(find_model(options.model))
    inputs = record(artifact, options.samples, options.steps)
    captions = pick(shipped(artifact.manifest.captions)[5:], options.pictures)
    reference = pictures(artifact.path, captions, options.steps)
    with tempfile.TemporaryDirectory() as scratch:
        recipe = Path(scratch) / "recipe.toml"
        recipe.write_text(RECIPE)
        ways = {
            "nncf": lambda out: by_nncf(artifact, inputs, out),
            "sfumato": lambda out: sfumato.optimize(
                artifact.path, out, recipe=recipe, samples=options.samples
            ),
        }
        for name, way in ways.items():
            started, out = time.perf_counter(), Path(scratch) / name
            way(out)
            seconds = time.perf_counter() - started
            found = pictures(out, captions, options.steps)
            values = [psnr(a, b) for a, b in zip(found, reference, strict=True)]
            size = (out / artifact.family.denoiser / "openvino_model.bin").stat().st_size
            print(
                f"{name:8} {seconds:6.1f} s  {size / 1e6:7.1f} MB  PSNR mean {np.mean(values):.1f} dB, "
                f"median {np.median(values):.1f}, worst {np.min(values):.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
