"""OpenVINO GenAI as the referee: it loads what we convert, and makes the picture that ours makes."""

import numpy as np
import openvino as ov
import pytest
from tokenizers import Tokenizer

import tiny
from sfumato import Pipeline

genai = pytest.importorskip("openvino_genai")

PROMPT, OTHER, NEGATIVE = "a smiling red apple", "noto cat", "green house"
STEPS, GUIDANCE, SIZE = 4, 5.0, 64


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


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


@pytest.mark.parametrize("name", tiny.NAMES)
def test_the_same_picture_as_genai(name, artifacts):
    folder = artifacts(name)
    channels = 16 if name.startswith("sd3") else 4
    latents = np.random.default_rng(7).standard_normal((1, channels, SIZE // 8, SIZE // 8)).astype(np.float32)
    theirs = genai.Text2ImagePipeline(folder, "CPU", INFERENCE_PRECISION_HINT="f32")
    options = {"max_sequence_length": tiny.T5_TOKENS} if name.startswith("sd3") else {}
    reference = theirs.generate(
        PROMPT,
        negative_prompt=NEGATIVE,
        width=SIZE,
        height=SIZE,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=FixedNoise(latents),
        **options,
    ).data[0]

    ours = Pipeline.load(folder, precision="f32")
    shared = {"negative_prompt": NEGATIVE, "steps": STEPS, "guidance": GUIDANCE, "size": (SIZE, SIZE)}
    picture, other = (
        np.asarray(ours(prompt, latents=latents, **shared).images[0]) for prompt in (PROMPT, OTHER)
    )
    assert psnr(picture, reference) >= 30
    assert psnr(picture, other) < psnr(picture, reference) - 6  # the prompt's share is larger than the error


@pytest.mark.parametrize(
    ("name", "folder"), [("sd", "tokenizer"), ("sdxl", "tokenizer_2"), ("sd3", "tokenizer_3")]
)
def test_genai_reads_the_same_tokens(name, folder, artifacts):
    path = artifacts(name) / folder
    theirs, ours = genai.Tokenizer(path), Tokenizer.from_file(str(path / "tokenizer.json"))
    # Not "!", which is a pad token to Hugging Face's library (and ours) but an ordinary one to GenAI's.
    for prompt in ("a red apple", "", "A Smiling  face, of noto?"):
        assert theirs.encode(prompt).input_ids.data[0].tolist() == ours.encode(prompt).ids
    pad = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!", "tokenizer_3": "<pad>"}[folder]
    assert theirs.get_pad_token_id() == ours.token_to_id(pad)
