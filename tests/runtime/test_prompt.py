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
    assert (short.kept, short.total) == (1, 1)
    assert (long.kept, long.total) == (14, 2000)
    assert long.ids[0, -1] == short.ids[0, 2]
    assert long.ids[0, 0] == short.ids[0, 0]


@pytest.fixture
def chunked(artifacts) -> PromptTokenizer:
    return PromptTokenizer(artifacts("sd") / "tokenizer", max_tokens=16, max_chunks=4)


def test_long_prompt_is_told_in_chunks(chunked):
    tokens = chunked("a red apple " * 10)
    assert tokens.ids.shape == tokens.weights.shape == (3, 16)
    assert (tokens.kept, tokens.total) == (30, 30)
    ids = [chunked(text).ids[0] for text in ("a", "red", "apple", "")]
    a, red, apple = (each[1] for each in ids[:3])
    begin, end = ids[3][:2]
    content = [a, red, apple] * 10
    assert tokens.ids[0].tolist() == [begin, *content[:14], end]
    assert tokens.ids[1].tolist() == [begin, *content[14:28], end]
    assert tokens.ids[2].tolist() == [begin, *content[28:], *ids[3][1:14]]


def test_full_chunk_needs_no_other(chunked):
    assert [len(chunked("apple " * count).ids) for count in (13, 14, 15, 28, 29)] == [1, 1, 2, 2, 3]


def test_too_many_chunks_are_cut(chunked):
    tokens = chunked("apple " * 100)
    assert (tokens.ids.shape, tokens.kept, tokens.total) == ((4, 16), 56, 100)
    tokens = chunked("a BREAK " * 6)
    assert (tokens.ids.shape, tokens.kept, tokens.total) == ((4, 16), 4, 6)


def test_break_begins_a_chunk(chunked):
    tokens = chunked("a red BREAK apple")
    assert tokens.ids.tolist() == [*chunked("a red").ids.tolist(), *chunked("apple").ids.tolist()]


def test_weights_are_those_of_words(chunked):
    tokens = chunked("a (red apple:1.5) [cat]")
    assert tokens.ids.tolist() == chunked("a red apple cat").ids.tolist()
    assert tokens.weights[0].tolist() == pytest.approx([1, 1, 1.5, 1.5, 1 / 1.1, *[1] * 11])
    assert tokens.weights.dtype == "float32"


def test_weights_follow_words_into_the_next_chunk(chunked):
    tokens = chunked("a " * 13 + "(red apple:2)")
    assert tokens.weights.tolist() == [[*[1] * 14, 2, 1], [1, 2, *[1] * 14]]


def test_filled_up_with_empty_chunks(chunked):
    tokens = chunked.filled(chunked("(apple:2)"), 3)
    assert tokens.ids[1:].tolist() == [chunked("").ids[0].tolist()] * 2
    assert tokens.weights.tolist() == [[1, 2, *[1] * 14], [1] * 16, [1] * 16]


def test_t5_reads_weighted_words_as_without_weights_and_in_one_chunk(artifacts):
    tokenize = PromptTokenizer(artifacts("sd3") / "tokenizer_3", max_tokens=16)
    plain = tokenize("a red apple cat")
    weighted = tokenize("a (red:1.5) apple BREAK (cat:0.5)")
    assert weighted.ids.tolist() == plain.ids.tolist()
    assert weighted.weights[0].tolist() == [1, 1, 1.5, 1, 0.5, *[1] * 11]


def test_length_without_room_is_named(artifacts):
    folder = artifacts("sd") / "tokenizer"
    with pytest.raises(ArtifactError, match=f"{folder}: max_tokens 2 leaves no room"):
        PromptTokenizer(folder, max_tokens=2)


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
