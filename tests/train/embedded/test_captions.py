"""Captions: what they may say, how often pictures are drawn, and which are set for evaluation."""

from collections import Counter

import numpy as np
import pytest

from sfumato.errors import InvalidRequest
from sfumato.train.embedded import captions, dataset


def test_captions_name_style_or_concept():
    record = dataset.Record("noto", "red-apple", "red apple", ("red apple",), (), "food", "train")
    texts = {captions.caption(record, np.random.default_rng(i)) for i in range(50)}
    assert "noto red apple" in texts
    assert all("red apple" in text for text in texts)


def test_common_concepts_get_their_share():
    common = [dataset.Record(s, "cat", "cat", ("cat",), (), "nature", "train") for s in "abcd"]
    rare = [dataset.Record("a", f"x{i}", f"x{i}", (f"x{i}",), (), "objects", "train") for i in range(20)]
    weights = captions.weights(common + rare, 0.75)
    assert weights.sum() == pytest.approx(1)
    assert weights[:4].sum() == pytest.approx(0.75)


def test_styles_are_drawn_as_often_as_each_other():
    pictures = {"noto": 30, "firefox": 10}
    records = [
        dataset.Record(style, f"thing-{i}", f"thing {i}", ("thing",), (), "objects", "train")
        for style, count in pictures.items()
        for i in range(count)
    ]
    weights = captions.weights(records, 0)
    assert weights[:30].tolist() == pytest.approx([0.5 / 30] * 30)
    assert weights[30:].tolist() == pytest.approx([0.5 / 10] * 10)


def test_words_are_taught_as_often_as_each_other():
    cats = [dataset.Record("a", f"cat-{i}", f"cat {i}", ("cat",), (), "nature", "train") for i in range(3)]
    rest = [dataset.Record("a", n, n, (n,), (), "nature", "train") for n in ("dog", "caterpillar")]
    weights = captions.word_weights(cats + rest, ("cat", "dog"))
    assert weights.tolist() == pytest.approx([1 / 6] * 3 + [1 / 2, 0])
    with pytest.raises(InvalidRequest, match="'zebra'"):
        captions.word_weights(cats, ("zebra",))


def test_captions_name_the_colour_that_a_picture_lies_on():
    record = dataset.Record("noto", "cat", "cat", ("cat",), ("pet",), "nature", "train", background="blue")
    texts = {captions.caption(record, np.random.default_rng(i)) for i in range(50)}
    assert "noto cat on a blue background" in texts
    assert all(text.endswith("blue background") for text in texts)


def test_pictures_count_by_their_weight():
    records = [
        dataset.Record("a", name, name, (name,), (), "objects", "train", weight=weight)
        for name, weight in (("guard", 0.5), ("man guard", 0.5), ("pen", 1.0))
    ]
    assert captions.weights(records, 0).tolist() == pytest.approx([0.25, 0.25, 0.5])


def evaluated(count=20, **changes):
    records = [
        dataset.Record(style, f"thing-{i}", f"thing {i}", (f"thing {i}",), (), "objects", "train", **changes)
        for style in ("noto", "flat")
        for i in range(30)
    ]
    return records, captions.evaluation(records, "train", count, seed=3)


def test_evaluation_draws_distinct_captions_of_their_pictures():
    records, drawn = evaluated()
    assert drawn == evaluated()[1]
    assert len({caption for _, caption in drawn}) == 20
    assert all(caption == f"{records[i].style} {records[i].concept}" for i, caption in drawn)
    assert set(Counter(records[i].style for i, _ in drawn)) == {"noto", "flat"}


def test_evaluation_says_when_there_are_too_few():
    with pytest.raises(InvalidRequest, match="it has 60"):
        evaluated(61)
    with pytest.raises(InvalidRequest, match="it has 0"):
        evaluated(1, background="red")
