"""Text encoders: a prompt in, what the family's conditioning needs out."""

import numpy as np

from ..artifact import Artifact
from ..families import TEXT_KINDS, Encoded
from .devices import Device, Network
from .prompt import PromptTokenizer


class TextEncoder:
    """One text encoder with its tokenizer."""

    def __init__(self, artifact: Artifact, name: str, device: Device) -> None:
        info = artifact.manifest.components[name]
        assert info.tokenizer is not None and info.max_tokens is not None  # by load_manifest
        self._tokenize = PromptTokenizer(artifact.path / info.tokenizer, info.max_tokens)
        self._network = Network(artifact, name, device)
        self._outputs = {"states": "last_hidden_state"}
        if info.hidden_states is not None:
            self._outputs["penultimate"] = f"hidden_states.{info.hidden_states - 2}"
        if info.kind == "clip_projection":
            self._outputs["pooled"] = "text_embeds"

    def load(self) -> None:
        """Compile the network ahead of its first use."""
        self._network.load({"input_ids": (1, self._tokenize.max_tokens)})

    def __call__(self, text: str) -> Encoded:
        """Encode one text; see `Encoded` for the arrays."""
        outputs = self._network({"input_ids": self._tokenize(text)})
        return {key: np.asarray(outputs[name], np.float32) for key, name in self._outputs.items()}


def text_encoders(artifact: Artifact, device: Device) -> dict[str, TextEncoder]:
    """The text encoders that the artifact has, in the family's order."""
    present = artifact.manifest.components
    return {
        component.name: TextEncoder(artifact, component.name, device)
        for component in artifact.family.components
        if component.kind in TEXT_KINDS and component.name in present
    }
