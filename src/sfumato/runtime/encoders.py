"""Text encoders: a prompt in, what the family's conditioning needs out."""

import logging
from collections.abc import Mapping, Sequence

from ..artifact import Artifact
from ..families import TEXT_KINDS, Encoded
from .devices import Device
from .memory import Kept
from .networks import Network
from .progress import Cancel, Clock, stop_if
from .prompt import PromptTokenizer, Tokens

log = logging.getLogger(__name__)


class TextEncoder:
    """One text encoder with its tokenizer."""

    def __init__(self, artifact: Artifact, name: str, device: Device) -> None:
        info = artifact.manifest.components[name]
        assert info.tokenizer is not None and info.max_tokens is not None  # by load_manifest
        self.tokenize = PromptTokenizer(artifact.path / info.tokenizer, info.max_tokens)
        self._network = Network(artifact, name, device)
        self._names = {"states": "last_hidden_state"}
        if info.hidden_states is not None:
            self._names["penultimate"] = f"hidden_states.{info.hidden_states - 2}"
        self._outputs: dict[str, tuple[int, ...]] = dict.fromkeys(
            self._names.values(), (1, info.max_tokens, -1)
        )
        if info.kind == "clip_projection":
            self._names["pooled"] = "text_embeds"
            self._outputs["text_embeds"] = (1, -1)

    def load(self) -> None:
        """Compile the network ahead of its first use."""
        self._network.load({"input_ids": (1, self.tokenize.max_tokens)}, self._outputs)

    def release(self) -> None:
        """Let go of the compiled network."""
        self._network.release()

    def __call__(self, tokens: Tokens) -> Encoded:
        """Encode one text; see `Encoded` for the arrays."""
        outputs = self._network({"input_ids": tokens.ids}, self._outputs)
        return {key: outputs[name] for key, name in self._names.items()}


def text_encoders(artifact: Artifact, device: Device) -> dict[str, TextEncoder]:
    """The text encoders that the artifact has, in the family's order."""
    present = artifact.manifest.components
    return {
        component.name: TextEncoder(artifact, component.name, device)
        for component in artifact.family.components
        if component.kind in TEXT_KINDS and component.name in present
    }


def encode(
    encoders: Mapping[str, TextEncoder], texts: Sequence[str], kept: Kept, clock: Clock, cancel: Cancel | None
) -> list[dict[str, Encoded]]:
    """Encode texts with one encoder after the other, each released before the next where memory is low.

    What is cut because it is too long is said in one warning for each text.
    """
    tokens = [_tokenize(encoders, text) for text in texts]
    encoded: list[dict[str, Encoded]] = [{} for _ in texts]
    for name, encoder in encoders.items():
        with clock("load"):
            stop_if(cancel)
            encoder.load()
        with clock("encode"):
            for each, result in zip(tokens, encoded, strict=True):
                result[name] = encoder(each[name])
        if kept == "low":
            encoder.release()
    return encoded


def _tokenize(encoders: Mapping[str, TextEncoder], text: str) -> dict[str, Tokens]:
    tokens = {name: encoder.tokenize(text) for name, encoder in encoders.items()}
    cuts: dict[str, list[str]] = {}
    for name, each in tokens.items():
        if each.total > each.ids.size:
            cuts.setdefault(f"at {each.ids.size} tokens of {each.total}", []).append(name)
    if cuts:
        where = ", ".join(f"{cut} ({', '.join(names)})" for cut, names in cuts.items())
        log.warning("prompt cut %s: what follows is not seen", where)
    return tokens
