"""Tokenizers of the embedded models, trained on their captions: CLIP's kind and T5's kind."""

import json

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


def train_clip(texts: list[str], vocabulary: int, max_tokens: int, pad: str = END) -> CLIPTokenizer:
    """Byte-pair tokenizer of CLIP's form (Radford et al. 2021): lower case, bytes, `</w>` ends a word."""
    byte_alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    reserved = 2 + len(byte_alphabet)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - reserved,
        initial_alphabet=byte_alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    learned = tokenizer.get_vocab()
    singles = [*byte_alphabet, *(symbol + "</w>" for symbol in byte_alphabet)]
    # The trainer orders ties at random: sorted tokens get the same ids in every run.
    rest = sorted(set(learned) - set(singles))
    vocab = {token: index for index, token in enumerate([*singles, *rest, START, END])}
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_tokens, pad_token=pad)


def train_t5(texts: list[str], vocabulary: int, max_tokens: int) -> T5Tokenizer:
    """Unigram tokenizer of T5's form (Raffel et al. 2020): `<pad>` 0, `</s>` 1, `<unk>` 2, spaces as `▁`."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    both_cases = [*texts, *(text.capitalize() for text in texts)]
    tokenizer.train_from_iterator(both_cases, trainer)
    scores = dict(json.loads(tokenizer.to_str())["model"]["vocab"])
    vocab = [(token, scores[token]) for token in [*special, *sorted(set(scores) - set(special))]]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=max_tokens)
