"""Text to token ids, as Hugging Face's tokenizers give them to the text encoders."""

import json
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..errors import ArtifactError

log = logging.getLogger(__name__)


class PromptTokenizer:
    """A tokenizer folder (`tokenizer.json`, `tokenizer_config.json`) at a fixed length."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        """Raises ArtifactError where the folder's files are damaged."""
        self.name = folder.name
        self.max_tokens = max_tokens
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = json.loads((folder / "tokenizer_config.json").read_bytes())
        except Exception as error:  # `tokenizers` raises bare Exception on a malformed file
            raise ArtifactError(f"{folder}: the tokenizer cannot be read ({error})") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._pad = self._pad_id(folder, config.get("pad_token"))

    def __call__(self, text: str) -> NDArray[np.int64]:
        """Token ids [1, max_tokens], padded; a longer text is cut before its end token, with a warning."""
        ids = self._tokenizer.encode(text).ids
        excess = len(ids) - self.max_tokens
        if excess > 0:
            log.warning(
                "prompt cut at %d tokens (%s): the last %d are not seen", self.max_tokens, self.name, excess
            )
            ids = [*ids[: self.max_tokens - 1], ids[-1]]
        return np.array([ids + [self._pad] * (self.max_tokens - len(ids))], np.int64)

    def _pad_id(self, folder: Path, pad: str | dict[str, str] | None) -> int:
        token = pad["content"] if isinstance(pad, dict) else pad
        found = self._tokenizer.token_to_id(token) if token else None
        if found is None:
            raise ArtifactError(
                f"{folder}/tokenizer_config.json: pad_token {token!r} is not in the vocabulary"
            )
        return int(found)
