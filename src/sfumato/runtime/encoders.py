"""Text encoders: prompts in, what the family's conditioning needs out."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifact import REMEDY, Artifact
from ..errors import ArtifactError, InvalidRequest
from ..families import CLIP_KINDS, TEXT_KINDS, Array, Encoded
from .chunks import RecentChunks, assemble
from .devices import Device, Devices
from .memory import Kept
from .networks import Edit, MakeNetwork, Network
from .progress import Cancel, Clock, stop_if
from .prompt import PromptTokenizer, Tokens

MAX_CHUNKS = 16
"""Most chunks of a prompt for CLIP, 1,200 tokens; each makes every step of the denoiser slower."""

log = logging.getLogger(__name__)


class TextEncoder:
    """One text encoder with its tokenizer.

    clip_skip is how many of a CLIP encoder's last layers to leave out; T5 has no use for it.
    """

    def __init__(self, artifact: Artifact, name: str, device: Device, make: MakeNetwork) -> None:
        info = artifact.manifest.components[name]
        assert info.tokenizer is not None and info.max_tokens is not None  # by load_manifest
        self.clip = info.kind in CLIP_KINDS
        self.layers = (info.hidden_states or 1) - 1
        self.tokenize = PromptTokenizer(
            artifact.path / info.tokenizer, info.max_tokens, MAX_CHUNKS if self.clip else 1
        )
        self._pools = info.kind == "clip_projection"
        self._make = partial(make, artifact, name, device)
        self._network = self._make(None)
        self._skipped = 0

    def load(self, clip_skip: int) -> None:
        """Compile the network ahead of its first use."""
        self._prepare(clip_skip)
        self._network.load({"input_ids": (1, self.tokenize.max_tokens)}, self._shapes(clip_skip))

    def release(self) -> None:
        """Let go of the compiled network."""
        self._network.release()

    def __call__(self, ids: NDArray[np.int64], clip_skip: int) -> dict[str, Array]:
        """Encode one chunk, ids [1, max_tokens]; see `Encoded` for the arrays."""
        self._prepare(clip_skip)
        outputs = self._network({"input_ids": ids}, self._shapes(clip_skip))
        return {key: outputs[name] for key, name in self._names(clip_skip).items()}

    def _prepare(self, clip_skip: int) -> None:
        """Have the network that leaves out so many layers.

        One that pools the last layer's states must keep it; its families read hidden states only.
        """
        skipped = clip_skip if self.clip and not self._pools else 0
        if skipped != self._skipped:
            self.release()
            self._network = self._make(_clip_skip(self.layers, skipped) if skipped else None)
            self._skipped = skipped

    def _names(self, clip_skip: int) -> dict[str, str]:
        names = {"states": "last_hidden_state"}
        if self.clip:
            names["penultimate"] = f"hidden_states.{self.layers - 1 - clip_skip}"
        if self._pools:
            names["pooled"] = "text_embeds"
        return names

    def _shapes(self, clip_skip: int) -> dict[str, tuple[int, ...]]:
        states = (1, self.tokenize.max_tokens, -1)
        return {name: (1, -1) if key == "pooled" else states for key, name in self._names(clip_skip).items()}


class TextEncoders:
    """The text encoders of an artifact, in the family's order, and what they lately said."""

    def __init__(self, artifact: Artifact, devices: Devices, kept: Kept, make: MakeNetwork = Network) -> None:
        """kept: whether networks stay loaded after their use. make: see `Pipeline`.

        Raises ArtifactError for damaged tokenizers.
        """
        present = artifact.manifest.components
        self._encoders = {
            component.name: TextEncoder(artifact, component.name, devices.of(component.name), make)
            for component in artifact.family.components
            if component.kind in TEXT_KINDS and component.name in present
        }
        self._kept = kept
        self._recent = RecentChunks()

    @property
    def names(self) -> tuple[str, ...]:
        """The components that take a text."""
        return tuple(self._encoders)

    def release(self) -> None:
        """Let go of the compiled networks; encodings of recent prompts stay."""
        for encoder in self._encoders.values():
            encoder.release()

    def forget(self) -> None:
        """Let go of the encodings of recent prompts: the next time they are computed anew."""
        self._recent = RecentChunks()

    def encode(
        self, prompts: Sequence[Mapping[str, str]], clip_skip: int, clock: Clock, cancel: Cancel | None
    ) -> list[dict[str, Encoded]]:
        """Encode prompts with one encoder after the other, each released before the next where memory is low.

        prompts: the text for each of `names`. clip_skip: last layers of CLIP encoders to leave out, for all
        prompts: with 1, "states" are the last but one layer's after the final layer norm (in encoders that
        pool nothing), and "penultimate" the one before it.

        States have as many tokens as the longest prompt takes in chunks of CLIP's length, pooled states are
        the first chunk's; T5 has one chunk. For weights see `assemble`. What is cut because it is too long is
        said in one warning for each prompt. Chunks that were encoded lately need no network.

        Raises InvalidRequest for a clip_skip beyond an encoder's layers, or a weight out of range.
        """
        self._check_skip(clip_skip)
        tokens = self._tokenize(prompts)
        encoded: list[dict[str, Encoded]] = [{} for _ in prompts]
        for name, encoder in self._encoders.items():
            mine = [each[name] for each in tokens]
            wanted = {row.tobytes(): row for each in mine for row in each.ids}
            empty = encoder.tokenize.empty.ids[0]
            weighted = [bool((each.weights != 1).any()) for each in mine]
            if any(weighted):
                wanted[empty.tobytes()] = empty
            chunks = self._chunks(name, wanted, clip_skip, clock, cancel)
            with clock("encode"):
                for each, result, is_weighted in zip(mine, encoded, weighted, strict=True):
                    result[name] = assemble(
                        [chunks[row.tobytes()] for row in each.ids],
                        each.weights,
                        chunks[empty.tobytes()] if is_weighted else None,
                    )
            if self._kept == "low":
                encoder.release()
        return encoded

    def _check_skip(self, clip_skip: int) -> None:
        for name, encoder in self._encoders.items():
            if encoder.clip and not 0 <= clip_skip < encoder.layers:
                raise InvalidRequest(
                    f"clip_skip {clip_skip}: must be from 0 to {encoder.layers - 1}, as {name} has "
                    f"{encoder.layers} layers"
                )

    def _tokenize(self, prompts: Sequence[Mapping[str, str]]) -> list[dict[str, Tokens]]:
        tokens = [
            {name: encoder.tokenize(prompt[name]) for name, encoder in self._encoders.items()}
            for prompt in prompts
        ]
        for each in tokens:
            _warn_of_cuts(each)
        clips = {name: encoder for name, encoder in self._encoders.items() if encoder.clip}
        most = max((len(each[name].ids) for each in tokens for name in clips), default=1)
        filled = [
            {name: encoder.tokenize.filled(each[name], most) for name, encoder in clips.items()}
            for each in tokens
        ]
        return [each | full for each, full in zip(tokens, filled, strict=True)]

    def _chunks(
        self,
        name: str,
        wanted: Mapping[bytes, NDArray[np.int64]],
        clip_skip: int,
        clock: Clock,
        cancel: Cancel | None,
    ) -> dict[bytes, Encoded]:
        """The encodings of chunks, by their ids' bytes."""
        encoder = self._encoders[name]
        layers = clip_skip if encoder.clip else 0
        found = {key: self._recent.get((name, layers, key)) for key in wanted}
        chunks = {key: encoded for key, encoded in found.items() if encoded is not None}
        with clock("load"):
            stop_if(cancel)
            if len(chunks) < len(wanted):
                encoder.load(clip_skip)
        for key, ids in wanted.items():
            if key in chunks:
                continue
            stop_if(cancel)
            with clock("encode"):
                encoded = encoder(ids[None], clip_skip)
            for array in encoded.values():
                array.setflags(write=False)
            self._recent.put((name, layers, key), encoded)
            chunks[key] = encoded
        return chunks


def _warn_of_cuts(tokens: Mapping[str, Tokens]) -> None:
    cuts: dict[str, list[str]] = {}
    for name, each in tokens.items():
        if each.total > each.kept:
            cuts.setdefault(f"at {each.kept} tokens of {each.total}", []).append(name)
    if cuts:
        where = ", ".join(f"{cut} ({', '.join(names)})" for cut, names in cuts.items())
        log.warning("prompt cut %s: what follows is not seen", where)


def _clip_skip(layers: int, skip: int) -> Edit:
    """Let what follows a CLIP encoder's last layer, the final layer norm, follow an earlier one."""

    def apply(model: Any) -> None:
        sources = {
            name: port.get_node().input_value(0) for port in model.outputs for name in port.get_names()
        }
        try:
            last, earlier = (sources[f"hidden_states.{layer}"] for layer in (layers, layers - skip))
        except KeyError as error:
            raise ArtifactError(f"clip_skip: the text encoder has no output {error}; {REMEDY}") from error
        for consumer in last.get_target_inputs():
            if consumer.get_node().get_type_name() != "Result":
                consumer.replace_source_output(earlier)

    return Edit(f"clip-skip-{skip}", apply)
