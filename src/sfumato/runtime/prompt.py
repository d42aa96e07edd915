"""Text to token ids, as Hugging Face's tokenizers give them to the text encoders."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..artifact import REMEDY
from ..errors import ArtifactError
from ..families import Array
from .weighting import Fragment, parse

Content = list[tuple[int, float]]
"""Token ids and weights of a text."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """A text as an encoder reads it.

    ids: [chunks, max_tokens] int64; each chunk begins, ends and is padded as a text of its own.
    weights: [chunks, max_tokens] float32, 1 for what is not the text's.
    kept, total: how many tokens of the text are in ids, and how many it has.
    """

    ids: NDArray[np.int64]
    weights: Array
    kept: int
    total: int


class PromptTokenizer:
    """A tokenizer folder (`tokenizer.json`, `tokenizer_config.json`) at a fixed length."""

    def __init__(self, folder: Path, max_tokens: int, max_chunks: int = 1) -> None:
        """max_chunks: longer texts are cut; 1 puts what BREAK would part into one chunk.

        Raises ArtifactError where the folder's files are damaged, or no text would fit.
        """
        self.max_tokens = max_tokens
        self._max_chunks = max_chunks
        self._folder = folder
        with _failures(f"{folder}: the tokenizer cannot be read"):
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = json.loads((folder / "tokenizer_config.json").read_bytes())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._pad = self._pad_id(config)
        with _failures(f"{folder}: the tokenizer failed"):
            frame = self._tokenizer.encode("").ids
        # T5 has no token to begin with.
        self._begin, self._end = frame[:-1], frame[-1:]
        self._room = max_tokens - len(frame)
        if self._room < 1:
            raise ArtifactError(f"{folder}: max_tokens {max_tokens} leaves no room for a text; {REMEDY}")
        self.empty = self._tokens([[]], 0)

    def __call__(self, text: str) -> Tokens:
        """Token ids and weights of one text; for how weights are written, and InvalidRequest, see `parse`."""
        groups = parse(text)
        if self._max_chunks == 1:
            groups = [[fragment for group in groups for fragment in group]]
        contents = [self._content(group) for group in groups]
        chunks = [
            content[start : start + self._room]
            for content in contents
            for start in range(0, max(1, len(content)), self._room)
        ]
        return self._tokens(chunks[: self._max_chunks], sum(map(len, contents)))

    def filled(self, tokens: Tokens, chunks: int) -> Tokens:
        """The tokens with empty chunks after theirs, to make so many."""
        missing = chunks - len(tokens.ids)
        ids = np.concatenate([tokens.ids, *[self.empty.ids] * missing])
        weights = np.concatenate([tokens.weights, *[self.empty.weights] * missing])
        return Tokens(ids, weights, tokens.kept, tokens.total)

    def _content(self, fragments: Sequence[Fragment]) -> Content:
        """A text's tokens without those that begin and end it.

        Blanks between fragments are left out, as T5 has a token for them; one fragment is read as it is.
        """
        content: Content = []
        for fragment in fragments:
            text = fragment.text.strip() if len(fragments) > 1 else fragment.text
            with _failures(f"{self._folder}: the tokenizer failed"):
                ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            content += [(i, fragment.weight) for i in ids]
        return content

    def _tokens(self, chunks: Sequence[Content], total: int) -> Tokens:
        ids, weights = [], []
        for chunk in chunks:
            pads = [self._pad] * (self._room - len(chunk))
            ids.append([*self._begin, *(i for i, _ in chunk), *self._end, *pads])
            before, after = len(self._begin), len(self._end) + len(pads)
            weights.append([*[1.0] * before, *(weight for _, weight in chunk), *[1.0] * after])
        kept = sum(map(len, chunks))
        return Tokens(np.array(ids, np.int64), np.array(weights, np.float32), kept, total)

    def _pad_id(self, config: Any) -> int:
        pad = config.get("pad_token") if isinstance(config, dict) else None
        token = pad.get("content") if isinstance(pad, dict) else pad
        found = self._tokenizer.token_to_id(token) if isinstance(token, str) else None
        if found is None:
            raise ArtifactError(
                f"{self._folder}/tokenizer_config.json: pad_token {token!r} is not in the vocabulary"
            )
        return int(found)


@contextmanager
def _failures(message: str) -> Iterator[None]:
    """Turn what `tokenizers` raises into ArtifactError: bare Exceptions, and panics, which are none."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise ArtifactError(f"{message} ({error})") from error
