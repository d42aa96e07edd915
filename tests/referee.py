"""OpenVINO GenAI as the referee of converted models: its picture from given latents, and how far ours is."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai


class FixedNoise(genai.Generator):
    """A generator that hands out the latents it was given."""

    def __init__(self, latents: np.ndarray) -> None:
        super().__init__()
        self.latents = latents

    def next(self) -> float:
        raise NotImplementedError

    def randn_tensor(self, shape: ov.Shape) -> ov.Tensor:
        assert tuple(shape) == self.latents.shape
        return ov.Tensor(self.latents)


def genai_picture(
    folder: Path,
    prompt: str,
    latents: np.ndarray,
    *,
    negative: str | None,
    steps: int,
    guidance: float,
    **options: Any,
) -> np.ndarray:
    """GenAI's picture, uint8 [height, width, 3], in float32 arithmetic; options are its own."""
    height, width = (8 * side for side in latents.shape[2:])
    if negative is not None:  # which is refused where guidance is an input of the denoiser
        options["negative_prompt"] = negative
    pipeline = genai.Text2ImagePipeline(folder, "CPU", INFERENCE_PRECISION_HINT="f32")
    pictures = pipeline.generate(
        prompt,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=FixedNoise(latents),
        **options,
    )
    return pictures.data[0]


def psnr(a: Any, b: Any) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures in dB."""
    error = np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))
