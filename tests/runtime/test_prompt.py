"""Token ids are those of transformers' tokenizers."""

import json
import shutil

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from sfumato.errors import ArtifactError
from sfumato.runtime.prompt import PromptTokenizer

TEXTS = [
    "",
    "   ",
    "a red apple",
    "A  RED\tApple, 3 éclairs & a 猫 🐱!",
    "it's <|endoftext|> here",
    "apple " * 200,
]


@pytest.mark.parametrize(
    ("name", "tokenizer"), [("sd", "tokenizer"), ("sdxl", "tokenizer_2"), ("sd3", "tokenizer_3")]
)
def test_ids_equal_transformers(checkpoints, artifacts, name, tokenizer):
    theirs = AutoTokenizer.from_pretrained(checkpoints(name) / tokenizer)
    ours = PromptTokenizer(artifacts(name) / tokenizer, max_tokens=16)
    for text in TEXTS:
        expected = theirs(text, padding="max_length", max_length=16, truncation=True).input_ids
        ids = ours(text).ids
        assert ids.shape == (1, 16)
        assert ids.dtype == "int64"
        assert ids[0].tolist() == expected, text


def test_long_prompt_is_cut_and_keeps_its_end(artifacts):
    tokenize = PromptTokenizer(artifacts("sd") / "tokenizer", max_tokens=16)
    short, long = tokenize("apple"), tokenize("apple " * 2000)
    assert (short.total, long.total) == (3, 2002)
    assert long.ids[0, -1] == short.ids[0, 2]
    assert long.ids[0, 0] == short.ids[0, 0]


@pytest.mark.parametrize("text", ["{}", "[" * 10_000, "", "\xff", '{"model": {"type": "BPE"}}'])
def test_damaged_tokenizer_is_named(tmp_path, text):
    (tmp_path / "tokenizer.json").write_bytes(text.encode("latin-1"))
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "a"}')
    with pytest.raises(ArtifactError, match=f"{tmp_path}: the tokenizer cannot be read"):
        PromptTokenizer(tmp_path, max_tokens=16)


@pytest.mark.parametrize(
    "config",
    [[], {}, {"pad_token": 3}, {"pad_token": "absent"}, {"pad_token": {}}, {"pad_token": {"content": []}}],
)
def test_pad_token_outside_the_vocabulary_is_named(tmp_path, config):
    Tokenizer(models.WordLevel({"a": 0})).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"tokenizer_config.json: pad_token .* is not in the vocabulary"):
        PromptTokenizer(tmp_path, max_tokens=16)


def test_panic_of_the_tokenizer_is_an_error(artifacts, tmp_path):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(artifacts("sd3") / "tokenizer_3" / file, tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    document["post_processor"]["special_tokens"] = {}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=f"{tmp_path}: the tokenizer failed"):
        PromptTokenizer(tmp_path, max_tokens=16)("a")


def test_vocabulary_without_the_prompts_words_is_named(tmp_path):
    Tokenizer(models.WordLevel({"a": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "a"}')
    with pytest.raises(ArtifactError, match=f"{tmp_path}: the tokenizer failed"):
        PromptTokenizer(tmp_path, max_tokens=16)("b")
