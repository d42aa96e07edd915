"""Captions that ship, captions from files, and an even choice of them."""

from collections import Counter
from importlib.resources import files
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sfumato.errors import InvalidRequest
from sfumato.optimize.prompts import load_prompts, negatives, pick, shipped

STYLES = ("noto", "blob", "fluent", "flat", "firefox")


class TestGeneral:
    def test_300_different_ones(self):
        prompts = shipped("general")
        assert len(prompts) == len({prompt.lower() for prompt in prompts}) == 300

    def test_lengths_are_spread_evenly_from_2_to_60_words(self):
        lengths = [len(prompt.split()) for prompt in shipped("general")]
        assert min(lengths) == 2
        assert 58 <= max(lengths) <= 61
        tens = Counter(min((length - 1) // 10, 5) for length in lengths)
        assert all(40 <= tens[ten] <= 60 for ten in range(6))

    @pytest.mark.parametrize("count", [8, 20, 50, 60, 75, 100, 150])
    def test_an_even_choice_has_short_and_long_ones(self, count):
        lengths = [len(prompt.split()) for prompt in pick(shipped("general"), count)]
        assert 24 <= sum(lengths) / count <= 38
        assert min(lengths) <= 10
        assert max(lengths) >= 45


class TestIcons:
    def test_60_of_each_style_and_each_thing_once(self):
        captions = [prompt.split(" ", 1) for prompt in shipped("icons")]
        assert Counter(style for style, _ in captions) == dict.fromkeys(STYLES, 60)
        assert len({thing for _, thing in captions}) == 300

    @pytest.mark.parametrize("count", [5, 8, 60, 200])
    def test_an_even_choice_has_every_style(self, count):
        styles = Counter(prompt.split()[0] for prompt in pick(shipped("icons"), count))
        assert set(styles) == set(STYLES)
        assert max(styles.values()) - min(styles.values()) <= 1

    def test_the_embedded_models_know_the_words(self):
        """Common words are one token each; a caption of strange ones would fall apart into letters."""
        file = files("sfumato") / "embedded" / "mini" / "tokenizer" / "tokenizer.json"
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        captions = shipped("icons")
        counts = [len(tokenizer.encode(caption).ids) for caption in captions]
        assert max(counts) <= 16
        words = sum(len(caption.replace("-", " - ").split()) for caption in captions)
        assert (sum(counts) - 2 * len(captions)) / words < 1.3
        for style in STYLES:
            assert len(tokenizer.encode(style).ids) == 3


def test_negatives():
    assert len(set(negatives())) == 8


class TestPick:
    @given(st.integers(1, 400), st.integers(0, 400))
    def test_even(self, length, count):
        picked = pick([str(i) for i in range(length)], count)
        assert len(picked) == count
        often = Counter(picked).values()
        assert max(often, default=0) - min(often, default=0) <= 1
        if count <= length:
            gaps = {int(b) - int(a) for a, b in pairwise(picked)}
            assert not gaps or max(gaps) - min(gaps) <= 1

    def test_all_in_turn_where_there_are_fewer(self):
        assert pick(["a", "b"], 5) == ["a", "b", "a", "b", "a"]

    def test_from_nothing(self):
        with pytest.raises(InvalidRequest, match="no prompts"):
            pick([], 3)


class TestFiles:
    def test_one_a_line_without_blanks_and_comments(self, tmp_path):
        file = tmp_path / "own.txt"
        file.write_bytes("\ufeffa café\r\n\r\n# not this\n  \n  spaced \t\n#nor this\nlast\u2028one".encode())
        assert load_prompts(file) == ["a café", "spaced", "last\u2028one"]

    @pytest.mark.parametrize(
        ("data", "answer"),
        [
            (
                b"fine\nna\xefve\n",
                r"own.txt: line 2 is no UTF-8 text \(byte 3 is 0xef\); save the file as UTF-8",
            ),
            ("wide\n".encode("utf-16"), "line 1 is no UTF-8 text"),
            (b"a\0b\n", "line 1 is no text"),
            (b"", "has no prompts"),
            (b"# only this\n\n", "has no prompts"),
            (b"a\n" + b"x" * 2001, "line 2 is longer than 2000 characters"),
            (b"x" * 1_000_000, "line 1 is longer than 2000 characters"),
            (b"a\n" * 100_001, "more than 100000 lines"),
        ],
    )
    def test_refused(self, tmp_path, data, answer):
        file = tmp_path / "own.txt"
        file.write_bytes(data)
        with pytest.raises(InvalidRequest, match=answer):
            load_prompts(file)

    def test_as_much_as_is_allowed(self, tmp_path):
        file = tmp_path / "own.txt"
        file.write_text("\U0001f34e" * 2000 + "\n" + "a\n" * 99_999, encoding="utf-8")
        assert len(load_prompts(file)) == 100_000

    def test_cannot_be_read(self, tmp_path):
        with pytest.raises(InvalidRequest, match=r"none.txt': cannot be read \(No such file"):
            load_prompts(tmp_path / "none.txt")
        with pytest.raises(InvalidRequest, match=r"cannot be read \(Is a directory"):
            load_prompts(tmp_path)
        with pytest.raises(InvalidRequest, match="cannot be read"):
            load_prompts(tmp_path / "a\0b")

    def test_unknown_captions(self):
        with pytest.raises(InvalidRequest, match="did you mean 'general'"):
            shipped("genral")
