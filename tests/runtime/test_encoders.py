"""Prompts as diffusers encodes them, in chunks and with weights as compel does, and kept for the next."""

import logging
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from sfumato.artifact import load_artifact
from sfumato.errors import Cancelled, InvalidRequest
from sfumato.runtime.chunks import RecentChunks
from sfumato.runtime.devices import Device, Devices
from sfumato.runtime.encoders import TextEncoders
from sfumato.runtime.networks import Network
from sfumato.runtime.progress import Clock

PROMPT = "a smiling red apple"
FAMILIES = ("sd", "sdxl", "sd3")


def same_text(encoders: TextEncoders, text: str) -> dict[str, str]:
    return dict.fromkeys(encoders.names, text)


def encode(encoders: TextEncoders, *prompts: str | Mapping[str, str], clip_skip: int = 0, cancel=None):
    given = [same_text(encoders, each) if isinstance(each, str) else each for each in prompts]
    return encoders.encode(given, clip_skip, Clock(), cancel)


def exact(ours: np.ndarray, theirs: torch.Tensor | np.ndarray) -> bool:
    return np.allclose(ours, np.asarray(theirs), rtol=1e-4, atol=2e-5)


@pytest.fixture(scope="module")
def encoders(artifacts):
    """`encoders(name)`: those of a tiny model, in float32."""
    return lambda name, kept="high": TextEncoders(
        load_artifact(artifacts(name)), Devices(Device("CPU", "f32", None, cached=False)), kept
    )


@pytest.fixture(scope="module")
def originals(checkpoints):
    """`originals(name)`: the diffusers pipeline of the same weights."""

    def load(name: str) -> DiffusionPipeline:
        pipe = DiffusionPipeline.from_pretrained(checkpoints(name), torch_dtype=torch.float32)
        if not hasattr(pipe.text_encoder, "text_model"):
            # diffusers 0.42 looks for the final layer norm where transformers 4 had it. Not as a submodule,
            # which would contain itself.
            object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)
        return pipe

    return load


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """The networks that were loaded."""
    names: list[str] = []
    load = Network.load

    def watched(self, *shapes):
        if self._request is None:
            names.append(self.path.parent.name)
        load(self, *shapes)

    monkeypatch.setattr(Network, "load", watched)
    return names


def conditioning(encoded) -> np.ndarray:
    """The states that diffusers' encode_prompt returns, without T5's."""
    parts = [part for name, part in encoded.items() if name != "text_encoder_3"]
    key = "states" if len(parts) == 1 else "penultimate"
    return np.concatenate([part[key] for part in parts], axis=-1)


def theirs(pipe, name: str, prompt: str, clip_skip: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    """States and pooled states of diffusers' encode_prompt, without T5's."""
    options = {"do_classifier_free_guidance": False, "device": "cpu", "clip_skip": clip_skip}
    if name == "sd":
        return pipe.encode_prompt(prompt, num_images_per_prompt=1, **options)[0].numpy(), None
    further = {"prompt_2": prompt} | ({"prompt_3": prompt} if name == "sd3" else {})
    states, _, pooled, _ = pipe.encode_prompt(prompt, **further, **options)
    states = states[:, :16, :80]  # SD3 pads to the joint width and appends T5
    return states.numpy(), pooled.numpy()


@pytest.mark.parametrize("name", FAMILIES)
def test_clip_skip_equals_diffusers(name, encoders, originals):
    ours, pipe = encoders(name), originals(name)
    seen = []
    for clip_skip in (0, 1, 2, 0):
        with torch.no_grad():
            states, pooled = theirs(pipe, name, PROMPT, clip_skip or None)
        (encoded,) = encode(ours, PROMPT, clip_skip=clip_skip)
        assert exact(conditioning(encoded), states), clip_skip
        if pooled is not None:
            parts = [part["pooled"] for part in encoded.values() if "pooled" in part]
            assert exact(np.concatenate(parts, axis=-1), pooled), clip_skip
        seen.append(states)
    assert not exact(seen[0], seen[1]) and not exact(seen[1], seen[2])


@pytest.mark.parametrize("clip_skip", [-1, 3, 100])
def test_clip_skip_beyond_the_layers_is_refused(encoders, clip_skip):
    with pytest.raises(InvalidRequest, match=f"clip_skip {clip_skip}: must be from 0 to 2, .* has 3 layers"):
        encode(encoders("sd"), PROMPT, clip_skip=clip_skip)


def reference(pipe, encoder: str, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Last and penultimate states of a text of up to 14 tokens."""
    tokenizer = getattr(pipe, encoder.replace("text_encoder", "tokenizer"))
    ids = tokenizer(text, padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.no_grad():
        out = getattr(pipe, encoder)(ids, output_hidden_states=True)
    return out.last_hidden_state.numpy(), out.hidden_states[-2].numpy()


def test_long_prompts_are_encoded_in_chunks(encoders, originals):
    ours, pipe = encoders("sdxl"), originals("sdxl")
    encoded, negative = encode(ours, "a red apple " * 6, "noto")
    chunks = ["a red apple " * 4 + "a red", "apple " + "a red apple "]
    for name, part in encoded.items():
        assert part["states"].shape[:2] == negative[name]["states"].shape[:2] == (1, 32)
        for index, text in enumerate(chunks):
            last, penultimate = reference(pipe, name, text)
            here = slice(16 * index, 16 * index + 16)
            assert exact(part["states"][:, here], last)
            assert exact(part["penultimate"][:, here], penultimate)
        assert exact(negative[name]["penultimate"][:, 16:], reference(pipe, name, "")[1])
    (first,) = encode(ours, chunks[0])
    pooled = encoded["text_encoder_2"]["pooled"]
    assert pooled.tobytes() == first["text_encoder_2"]["pooled"].tobytes()


def test_all_encoders_have_as_many_chunks_but_t5(encoders):
    ours = encoders("sd3")
    one = {"text_encoder": "a BREAK b BREAK c", "text_encoder_2": "apple", "text_encoder_3": "a BREAK b"}
    for encoded in encode(ours, one, "noto"):
        lengths = [part["states"].shape[1] for part in encoded.values()]
        assert lengths == [48, 48, 24]


def test_each_encoder_reads_its_own_text(encoders):
    ours = encoders("sd3")
    texts = {"text_encoder": "a cat", "text_encoder_2": "red apple", "text_encoder_3": "green house"}
    (mixed,) = encode(ours, texts)
    for name, text in texts.items():
        (same,) = encode(ours, text)
        assert mixed[name]["states"].tobytes() == same[name]["states"].tobytes()


def test_too_long_prompts_are_cut_with_a_warning_each(encoders, caplog):
    ours = encoders("sd3")
    with caplog.at_level(logging.WARNING):
        encoded = encode(ours, "apple " * 300, "apple " * 20)
    assert [part["states"].shape[1] for part in encoded[0].values()] == [256, 256, 24]
    assert [record.getMessage() for record in caplog.records] == [
        "prompt cut at 224 tokens of 300 (text_encoder, text_encoder_2), at 23 tokens of 300 "
        "(text_encoder_3): what follows is not seen"
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_of_one_change_nothing(encoders, name):
    ours = encoders(name)
    (plain,), (weighted,) = encode(ours, PROMPT), encode(ours, "a (smiling red:1.0) apple")
    for part, other in zip(plain.values(), weighted.values(), strict=True):
        assert all(part[key].tobytes() == other[key].tobytes() for key in part)


def test_weight_moves_states_away_from_the_empty_prompt(encoders):
    ours = encoders("sd3")
    plain, empty, strong, gone, against = (
        each["text_encoder_3"]["states"]
        for each in encode(ours, "red", "", "(red:1.5)", "(red:0)", "(red:-1)")
    )
    assert exact(strong - empty, np.concatenate([1.5 * (plain - empty)[:, :1], (plain - empty)[:, 1:]], 1))
    assert exact(gone[:, :1], empty[:, :1])
    assert exact((against + plain)[:, :1] / 2, empty[:, :1])
    assert not exact(strong, plain)


@pytest.mark.parametrize("text", ["a (red:1.5) apple", "((smiling)) cat of (green:1.3) house " * 5])
def test_weights_and_chunks_equal_compel(encoders, originals, text):
    compel = pytest.importorskip("compel.embeddings_provider")
    from sfumato.runtime.weighting import parse

    pipe = originals("sdxl")
    (encoded,) = encode(encoders("sdxl"), text)
    ((*fragments,),) = parse(text)
    last, penultimate = (
        compel.ReturnedEmbeddingsType.LAST_HIDDEN_STATES_NORMALIZED,
        compel.ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
    )
    for name, tokenizer in (("text_encoder", pipe.tokenizer), ("text_encoder_2", pipe.tokenizer_2)):
        for key, kind in (("states", last), ("penultimate", penultimate)):
            provider = compel.EmbeddingsProvider(
                tokenizer,
                getattr(pipe, name),
                truncate=False,
                returned_embeddings_type=kind,
                split_long_text_mode=compel.SplitLongTextMode.BRUTAL,
            )
            with torch.no_grad():
                expected = provider.get_embeddings_for_weighted_prompt_fragments(
                    [[part.text for part in fragments]], [[part.weight for part in fragments]]
                )
            assert exact(encoded[name][key], expected), (name, key)


def test_t5_weights_equal_compel(encoders, originals):
    compel = pytest.importorskip("compel.embeddings_provider")
    pipe = originals("sd3")
    provider = compel.EmbeddingsProvider(pipe.tokenizer_3, pipe.text_encoder_3)
    with torch.no_grad():
        expected = provider.get_embeddings_for_weighted_prompt_fragments(
            [["green", "house", "of apple"]], [[1.0, 1.4, 1.0]]
        )
    (encoded,) = encode(encoders("sd3"), "green (house:1.4) of apple")
    assert exact(encoded["text_encoder_3"]["states"], expected)


@pytest.mark.parametrize("kept", ["low", "high"])
def test_repeated_prompt_needs_no_network(encoders, loads, kept):
    ours = encoders("sd3", kept)
    names = list(ours.names)
    first = encode(ours, PROMPT, "noto (cat:1.2)")
    assert loads == names
    ours.release()
    again = encode(ours, PROMPT, "noto (cat:1.2)")
    encode(ours, PROMPT, "noto (cat:1.4)", "(noto) cat", "")
    assert loads == names
    for one, other in zip(first, again, strict=True):
        for name, part in one.items():
            assert all(part[key].tobytes() == other[name][key].tobytes() for key in part)
    encode(ours, PROMPT, clip_skip=1)
    assert loads == [*names, "text_encoder", "text_encoder_2"]
    encode(ours, PROMPT, "apple")
    assert loads == [*names, "text_encoder", "text_encoder_2", *(names if kept == "low" else names[2:])]


def test_what_is_kept_cannot_be_changed_by_its_reader(encoders):
    ours = encoders("sdxl")
    (first,) = encode(ours, PROMPT)
    expected = first["text_encoder"]["states"].copy()
    first["text_encoder"]["states"][:] = 0
    assert encode(ours, PROMPT)[0]["text_encoder"]["states"].tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        first["text_encoder_2"]["pooled"][:] = 0


def test_the_least_recently_used_goes_first():
    chunk = {"states": np.zeros((1, 16, 16), np.float32)}
    recent = RecentChunks(limit=3 * 1024)
    for key in "abc":
        recent.put(key, chunk)
    assert recent.get("a") is chunk
    recent.put("d", chunk)
    assert [recent.get(key) is chunk for key in "abcd"] == [True, False, True, True]
    recent.put("e", {"states": np.zeros((1, 64, 16), np.float32)})
    assert not any(recent.get(key) for key in "abcde")


def test_cancelled_between_chunks(encoders):
    asked = []

    def cancel() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(Cancelled):
        encode(encoders("sd"), "apple " * 40, cancel=cancel)
