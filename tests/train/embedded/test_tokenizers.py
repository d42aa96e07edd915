"""Tokenizers of the embedded models."""

from sfumato.train.embedded import tokenizers


def test_clip_tokenizer_pads_as_asked_and_knows_words():
    texts = ["noto red apple", "noto green apple"] * 50
    first = tokenizers.train_clip(texts, 600, 8)
    second = tokenizers.train_clip(texts, 600, 8, pad="!")
    assert first.tokenize("Noto red APPLE") == ["noto</w>", "red</w>", "apple</w>"]
    assert first("red", padding="max_length", max_length=8).input_ids[-1] == first.eos_token_id
    assert second("red", padding="max_length", max_length=8).input_ids[-1] == 0
