"""Text to token ids, as Hugging Face's tokenizers give them to the text encoders."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..errors import ArtifactError


@dataclass(frozen=True, eq=False)
class Tokens:
    """A text as an encoder reads it.

    ids: [1, max_tokens] int64, padded, or cut before the end token. total: length of the whole text.
    """

    ids: NDArray[np.int64]
    total: int


class PromptTokenizer:
    """A tokenizer folder (`tokenizer.json`, `tokenizer_config.json`) at a fixed length."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        """Raises ArtifactError where the folder's files are damaged."""
        self.max_tokens = max_tokens
        self._folder = folder
        with _failures(f"{folder}: the tokenizer cannot be read"):
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = json.loads((folder / "tokenizer_config.json").read_bytes())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._pad = self._pad_id(config)

    def __call__(self, text: str) -> Tokens:
        """Token ids of one text."""
        with _failures(f"{self._folder}: the tokenizer failed"):
            ids = self._tokenizer.encode(text).ids
        total = len(ids)
        if total > self.max_tokens:
            ids = [*ids[: self.max_tokens - 1], ids[-1]]
        padded = [*ids, *[self._pad] * (self.max_tokens - len(ids))]
        return Tokens(np.array([padded], np.int64), total)

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
