"""Token ids are those of transformers' tokenizers."""

import logging

import pytest
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
        ids = ours(text)
        assert ids.shape == (1, 16)
        assert ids.dtype == "int64"
        assert ids[0].tolist() == expected, text


def test_long_prompt_is_cut_with_a_warning_and_keeps_its_end(artifacts, caplog):
    tokenize = PromptTokenizer(artifacts("sd") / "tokenizer", max_tokens=16)
    with caplog.at_level(logging.WARNING):
        short, long = tokenize("apple"), tokenize("apple " * 2000)
    (record,) = caplog.records
    assert "cut at 16 tokens" in record.getMessage()
    assert "1986" in record.getMessage()
    assert long[0, -1] == short[0, 2]
    assert long[0, 0] == short[0, 0]


def test_damaged_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=f"{tmp_path}: the tokenizer cannot be read"):
        PromptTokenizer(tmp_path, max_tokens=16)
