"""Stable Diffusion 1.x in ONNX Runtime: float32 networks exported by torch.onnx, and a plain loop in numpy.

    python benchmarks/peers_onnx.py checkpoints/sd15 work/onnx --size 512x512

exports the text encoder, the UNet (both halves of guidance in one call) and the VAE's decoder, for one size.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

GUIDED = 2


class OnnxPipeline:
    """Exported networks and their loop: DDIM without noise (Song et al. 2020, arXiv 2010.02502)."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime  # type: ignore[import-not-found]
        from transformers import CLIPTokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL

        def session(name: str) -> Any:
            path = folder / name / "model.onnx"
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        self._text, self._unet, self._decoder = map(session, ("text_encoder", "unet", "vae"))
        self._tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self._config = json.loads((folder / "config.json").read_text())

    def __call__(
        self, prompt: str, negative: str, steps: int, guidance: float, seed: int, mark: Callable[[], None]
    ) -> np.ndarray:
        """The picture, uint8 [height, width, 3]; `mark` is called after each step."""
        tokens = self._tokenizer(
            [negative, prompt], padding="max_length", max_length=self._config["tokens"], truncation=True
        )
        hidden = self._text.run(None, {"input_ids": np.array(tokens["input_ids"], np.int64)})[0]
        kept = self._signal_shares()
        spacing = len(kept) // steps
        latents = np.random.default_rng(seed).standard_normal(self._config["latents"], np.float32)
        for timestep in np.arange(steps)[::-1] * spacing + 1:
            given = {"sample": np.concatenate([latents] * GUIDED), "timestep": np.array([timestep], np.int64)}
            blind, told = self._unet.run(None, given | {"encoder_hidden_states": hidden})[0]
            noise = blind + guidance * (told - blind)
            now, then = kept[timestep], kept[max(timestep - spacing, 0)]
            clean = (latents - np.sqrt(1 - now) * noise) / np.sqrt(now)
            latents = (np.sqrt(then) * clean + np.sqrt(1 - then) * noise).astype(np.float32)
            mark()
        picture = self._decoder.run(None, {"latents": latents / np.float32(self._config["scale"])})[0][0]
        return np.asarray((picture.transpose(1, 2, 0) * 127.5 + 127.5).round().clip(0, 255), np.uint8)

    def _signal_shares(self) -> np.ndarray:
        """How much of a clean picture is left at each of the training's timesteps (alpha-bar)."""
        scheduler = self._config["scheduler"]
        first, last = scheduler["beta_start"], scheduler["beta_end"]
        betas = np.linspace(first**0.5, last**0.5, scheduler["num_train_timesteps"]) ** 2
        return np.cumprod(1 - betas)


def export(checkpoint: Path, out: Path, size: tuple[int, int]) -> None:
    """Write the networks of a diffusers folder for pictures of one size (width, height)."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    torch.set_grad_enabled(False)

    configs = {name: _config(checkpoint / name) for name in ("text_encoder", "unet", "vae")}
    channels = configs["unet"]["in_channels"]
    factor = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    latents = (1, channels, size[1] // factor, size[0] // factor)
    tokens = configs["text_encoder"]["max_position_embeddings"]
    hidden = torch.randn(GUIDED, tokens, configs["unet"]["cross_attention_dim"])
    guided = torch.randn(GUIDED, *latents[1:])
    inputs: dict[str, tuple[Any, dict[str, Any]]] = {
        "text_encoder": (CLIPTextModel, {"input_ids": torch.ones(GUIDED, tokens, dtype=torch.int64)}),
        "unet": (
            UNet2DConditionModel,
            {"sample": guided, "timestep": torch.tensor([500]), "encoder_hidden_states": hidden},
        ),
        "vae": (AutoencoderKL, {"latents": torch.randn(latents)}),
    }
    for name, (network_class, example) in inputs.items():
        network = network_class.from_pretrained(checkpoint, subfolder=name).float().eval()
        if name == "vae":
            network.forward = network.decode
        (out / name).mkdir(parents=True)
        torch.onnx.export(
            network,
            tuple(example.values()),
            str(out / name / "model.onnx"),
            kwargs={"return_dict": False},
            input_names=list(example),
            dynamo=True,
            external_data=True,
        )
    shutil.copytree(checkpoint / "tokenizer", out / "tokenizer")
    scheduler = json.loads((checkpoint / "scheduler" / "scheduler_config.json").read_text())
    scale = configs["vae"].get("scaling_factor", 0.18215)
    document = {"tokens": tokens, "latents": latents, "scale": scale, "scheduler": scheduler}
    (out / "config.json").write_text(json.dumps(document))


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def main() -> None:
    from sfumato.files import atomic_folder
    from sfumato.runtime.parameters import parse_size

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=parse_size, default="512x512")
    given = parser.parse_args()
    with atomic_folder(given.out) as folder:
        export(given.checkpoint, folder, given.size)


if __name__ == "__main__":
    main()
