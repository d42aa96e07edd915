"""One step of a full-size denoiser: OpenVINO against PyTorch in float32, on the same inputs.

    python benchmarks/parity.py checkpoints/sd15 models/sd15 models/sd15-int8

CHECKPOINT is the diffusers folder that the model folders were converted from. Prints the relative error
(norm of the difference over the norm of PyTorch's result) of each in f32 and bf16 arithmetic. PyTorch needs
four bytes a parameter, and is done before OpenVINO begins.
"""

import argparse
import gc
from pathlib import Path

import numpy as np
import torch

from sfumato.artifact import Artifact, load_artifact
from sfumato.convert.checkpoints import open_checkpoint
from sfumato.convert.components import export_of
from sfumato.convert.weights import load_module
from sfumato.runtime.devices import Device
from sfumato.runtime.networks import Network


def inputs_of(described, latents: str, side: int, tokens: int) -> dict[str, torch.Tensor]:
    """Random inputs [2, ...] for a denoiser: noise, a context of `tokens`, and a timestep of the middle."""
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for name, (example, shape) in described.inputs.items():
        if name == latents:
            inputs[name] = torch.randn(2, shape[1], side, side, generator=generator)
        elif name == "timestep":
            inputs[name] = torch.full((2,), 501.0).to(example.dtype)
        elif name == "time_ids":
            inputs[name] = torch.tensor([[512.0, 512.0, 0.0, 0.0, 512.0, 512.0][: shape[1]]] * 2)
        elif len(shape) == 3:
            inputs[name] = torch.randn(2, tokens, shape[2], generator=generator)
        else:
            inputs[name] = torch.randn(2, shape[1], generator=generator)
    return inputs


def torch_result(checkpoint: Path, side: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The inputs, and what PyTorch makes of them in float32."""
    opened = open_checkpoint(checkpoint, without_t5=True)
    family = opened.family
    component = family.component(family.denoiser)
    module = load_module(opened.parts[family.denoiser]).float()
    described = export_of(component.kind, module)
    inputs = inputs_of(described, family.latents_input, side, 154 if family.name == "sd3" else 77)
    with torch.no_grad():
        (result,) = described.module(**inputs)
    return {name: value.numpy() for name, value in inputs.items()}, result.numpy()


def openvino_result(artifact: Artifact, precision: str, inputs: dict[str, np.ndarray], shape) -> np.ndarray:
    """What the converted denoiser makes of them."""
    network = Network(artifact, artifact.family.denoiser, Device("CPU", precision, cached=False))
    floats = {name: value.astype(np.float32) for name, value in inputs.items()}
    return network(floats, {"out_sample": shape})["out_sample"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--side", type=int, default=32, help="latents of the picture's side (default: 32)")
    arguments = parser.parse_args()
    inputs, expected = torch_result(arguments.checkpoint, arguments.side)
    gc.collect()
    for model in arguments.models:
        artifact = load_artifact(model)
        for precision in ("f32", "bf16"):
            result = openvino_result(artifact, precision, inputs, expected.shape)
            error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
            print(
                f"{model.name}, {artifact.manifest.precision} weights, {precision}: {error:.2e}", flush=True
            )


if __name__ == "__main__":
    main()
