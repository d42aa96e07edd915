"""Tokenizers for single files, which have none: from a folder, an installed open_clip, or the Hub."""

import gzip
import importlib.util
import json
from pathlib import Path

from ...errors import CheckpointError, SfumatoError
from ...files import atomic_file
from ...runtime.cache import cache_folder
from ..checkpoints import TokenizerFiles, read_json
from ..hub_id import HubId
from .kinds import END, Encoder

FILES = ("tokenizer.json", "vocab.json", "spiece.model")
CONFIG = "tokenizer_config.json"
CLIP_REPO = "openai/clip-vit-large-patch14"
# T5 1.1 has T5's vocabulary, but in its own repository only as a file that needs SentencePiece.
T5_REPO = "google-t5/t5-small"
MERGES = 49152 - 256 - 2
START = "<|startoftext|>"


def tokenizer_files(file: Path, encoder: Encoder, folder: Path | None) -> TokenizerFiles:
    """The tokenizer of an encoder: in `folder`, beside the file, or else CLIP's or T5's own.

    folder: has a folder for each tokenizer, as diffusers' have. Raises CheckpointError where there is no
    tokenizer to be had.
    """
    class_name = encoder.tokenizer_class
    for home in filter(None, (folder, file.parent)):
        found = home / encoder.tokenizer
        if any((found / name).is_file() for name in FILES):
            if (found / CONFIG).is_file():
                read_json(found / CONFIG, home)
            return TokenizerFiles(found, class_name)
    try:
        made = _t5() if class_name == "T5Tokenizer" else _clip(encoder.pad)
    except SfumatoError as error:
        raise CheckpointError(
            f"{file}: a single file has no tokenizers, and {encoder.title}'s cannot be downloaded ({error}); "
            f"give a folder that has {encoder.tokenizer}/ with --tokenizers"
        ) from error
    return TokenizerFiles(made, class_name)


def check_folder(folder: Path | None) -> None:
    """Raise CheckpointError for a folder of tokenizers that has none."""
    homes = () if folder is None else folder.glob("tokenizer*")
    if folder is not None and not any((home / name).is_file() for home in homes for name in FILES):
        raise CheckpointError(
            f"{folder}: no tokenizers; give a folder in diffusers layout, which has tokenizer/ and maybe "
            "tokenizer_2/ and tokenizer_3/"
        )


def clip_vocabulary(lines: list[str]) -> tuple[dict[str, int], list[str]]:
    """CLIP's tokens and merges, from the lines of the list of merges that it was published with."""
    merges = lines[1 : MERGES + 1]
    # The byte alphabet in CLIP's order: printable bytes first, then the others in order.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["".join(merge.split()) for merge in merges] + [START, END]
    return {token: i for i, token in enumerate(tokens)}, merges


def _clip(pad: str) -> Path:
    """CLIP's tokenizer with this padding token, made once and kept in the cache."""
    folder = cache_folder() / "tokenizers" / ("clip" if pad == END else "open_clip")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": pad,
    }
    if not all((folder / name).is_file() for name in ("vocab.json", "merges.txt", CONFIG)):
        vocabulary, merges = _clip_files()
        folder.mkdir(parents=True, exist_ok=True)
        contents = {
            "vocab.json": vocabulary,
            "merges.txt": merges,
            CONFIG: json.dumps(config, indent=2) + "\n",
        }
        for name, text in contents.items():
            with atomic_file(folder / name) as partial:
                partial.write_text(text, encoding="utf-8")
    return folder


def _clip_files() -> tuple[str, str]:
    """vocab.json and merges.txt: made of open_clip's file where that is installed, else fetched."""
    spec = importlib.util.find_spec("open_clip")  # imports nothing
    for place in (spec.submodule_search_locations or []) if spec else []:
        file = Path(place) / "bpe_simple_vocab_16e6.txt.gz"
        if file.is_file():
            lines = gzip.decompress(file.read_bytes()).decode().split("\n")
            vocabulary, merges = clip_vocabulary(lines)
            return json.dumps(vocabulary, ensure_ascii=False), "\n".join(["#version: 0.2", *merges, ""])
    folder = _fetched(CLIP_REPO, ("vocab.json", "merges.txt"))
    return (folder / "vocab.json").read_text("utf-8"), (folder / "merges.txt").read_text("utf-8")


def _t5() -> Path:
    return _fetched(T5_REPO, ("tokenizer.json", CONFIG))


def _fetched(repo: str, names: tuple[str, ...]) -> Path:
    """The folder in the Hub's cache that these files of a repository are in."""
    from ..hub import fetch

    files = [fetch(HubId(repo, file=name)) for name in names]
    return files[0].parent
