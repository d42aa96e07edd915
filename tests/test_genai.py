"""OpenVINO GenAI as the referee: it loads what we convert, and makes the picture that ours makes."""

import numpy as np
import pytest
from tokenizers import Tokenizer

import tiny
from sfumato import Pipeline, convert

referee = pytest.importorskip("referee")  # absent where openvino_genai is
genai = referee.genai

PROMPT, OTHER, NEGATIVE = "a smiling red apple", "noto cat", "green house"
STEPS, GUIDANCE, SIZE = 4, 5.0, 64
SHARED = {"negative_prompt": NEGATIVE, "steps": STEPS, "guidance": GUIDANCE, "size": (SIZE, SIZE)}


@pytest.mark.parametrize("name", tiny.NAMES)
def test_the_same_picture_as_genai(name, artifacts):
    agree(name, artifacts(name))


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_the_same_picture_as_genai_with_merged_tokens(name, checkpoints, artifacts, tmp_path):
    merged = convert(checkpoints(name), tmp_path / "merged", token_merging=0.5)
    picture = agree(name, merged.path)
    whole = Pipeline.load(artifacts(name), precision="f32")
    assert not np.array_equal(
        picture, np.asarray(whole(PROMPT, **SHARED, latents=latents_of(name)).images[0])
    )


@pytest.mark.parametrize("name", tiny.CONSISTENT)
def test_the_same_picture_as_genai_with_guidance_as_an_input(name, artifacts):
    """In one step, as other noise is drawn between steps."""
    ours, latents = Pipeline.load(artifacts(name), precision="f32"), latents_of(name)
    pictures = {
        guidance: np.asarray(
            ours(PROMPT, latents=latents, steps=1, guidance=guidance, size=(SIZE, SIZE)).images[0]
        )
        for guidance in (8.5, 2.0)
    }
    reference = referee.genai_picture(artifacts(name), PROMPT, latents, negative=None, steps=1, guidance=8.5)
    assert referee.psnr(pictures[8.5], reference) >= 30
    assert referee.psnr(pictures[2.0], reference) < referee.psnr(pictures[8.5], reference) - 6


def latents_of(name):
    channels = 16 if name.startswith("sd3") else 4
    return np.random.default_rng(7).standard_normal((1, channels, SIZE // 8, SIZE // 8)).astype(np.float32)


def agree(name, folder):
    """Check that GenAI's picture is ours, and not that of another prompt; returns it."""
    latents = latents_of(name)
    options = {"max_sequence_length": tiny.T5_TOKENS} if name.startswith("sd3") else {}
    reference = referee.genai_picture(
        folder, PROMPT, latents, negative=NEGATIVE, steps=STEPS, guidance=GUIDANCE, **options
    )
    ours = Pipeline.load(folder, precision="f32")
    picture, other = (
        np.asarray(ours(prompt, latents=latents, **SHARED).images[0]) for prompt in (PROMPT, OTHER)
    )
    assert referee.psnr(picture, reference) >= 30
    assert (
        referee.psnr(picture, other) < referee.psnr(picture, reference) - 6
    )  # the prompt's share is larger than the error
    return picture


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
