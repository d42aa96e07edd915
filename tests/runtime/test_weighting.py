"""Weights in prompts: what AUTOMATIC1111's web UI reads, and what hostile texts must not do."""

import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.errors import InvalidRequest
from sfumato.runtime.weighting import Fragment, parse


def pairs(text: str) -> list[list[tuple[str, float]]]:
    return [[(part.text, pytest.approx(part.weight)) for part in chunk] for chunk in parse(text)]


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("a (red:1.3) apple", [("a ", 1), ("red", 1.3), (" apple", 1)]),
        ("a (red) apple", [("a ", 1), ("red", 1.1), (" apple", 1)]),
        ("((red))", [("red", 1.21)]),
        ("[red] apple", [("red", 1 / 1.1), (" apple", 1)]),
        ("[[red]]", [("red", 1 / 1.21)]),
        ("(a [red] apple:1.5)", [("a ", 1.5), ("red", 1.5 / 1.1), (" apple", 1.5)]),
        ("(a (red:2) apple:.5)", [("a ", 0.5), ("red", 1), (" apple", 0.5)]),
        ("(red: 1.3 )", [("red", 1.3)]),
        ("(red:2.)", [("red", 2)]),
        ("(red:-0.5)", [("red", -0.5)]),
        ("(red:+0)", [("red", 0)]),
        ("(10:30:1.2)", [("10:30", 1.2)]),
        ("(a)(b)", [("ab", 1.1)]),
        (r"\(red:1.3\) \[a\]", [("(red:1.3) [a]", 1)]),
        (r"(a \(red\) apple:1.3)", [("a (red) apple", 1.3)]),
        (r"(apple\))", [("apple)", 1.1)]),
        ("(red:1) apple", [("red apple", 1)]),
    ],
)
def test_weights(text, fragments):
    assert pairs(text) == [fragments]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "a red apple",
        "a: b, 10:30",
        r"C:\dir\\x",
        ":1.3)",
        "a (b",
        "a) b",
        "]",
        "[",
        "(a]",
        "a :) b",
    ],
)
def test_text_without_weights_is_one_fragment(text):
    assert parse(text) == ([[Fragment(text)]] if text else [[]])


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("(a (b:1.5)", [("(a ", 1), ("b", 1.5)]),
        ("(a [b:1.5) c]", [("a [b", 1.5), (" c]", 1)]),
        ("[a (b] c)", [("a (b", 1 / 1.1), (" c)", 1)]),
        ("(a:1e3)", [("a:1e3", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:nan)", [("a:nan", 1.1)]),
        ("(a:)", [("a:", 1.1)]),
        ("[a:0.5]", [("a:0.5", 1 / 1.1)]),
    ],
)
def test_what_is_no_weight_is_text(text, fragments):
    assert pairs(text) == [fragments]


@pytest.mark.parametrize(
    ("text", "chunks"),
    [
        ("a BREAK b", [[("a ", 1)], [(" b", 1)]]),
        ("(a BREAK b:1.5) c", [[("a ", 1.5)], [(" b", 1.5), (" c", 1)]]),
        ("a\nBREAK, b", [[("a\n", 1)], [(", b", 1)]]),
        ("BREAKFAST break aBREAK", [[("BREAKFAST break aBREAK", 1)]]),
        ("BREAK a BREAK BREAK b BREAK", [[(" a ", 1)], [(" b ", 1)]]),
        ("BREAK", [[]]),
    ],
)
def test_break_begins_a_chunk(text, chunks):
    assert pairs(text) == chunks


@pytest.mark.parametrize(
    "text", ["(a:101)", "(a:-101)", f"(a:{'9' * 400})", "((a:99):1.5)", "(" * 60 + "a" + ")" * 60]
)
def test_absurd_weights_are_refused(text):
    with pytest.raises(InvalidRequest, match=r"weight .* of 'a' must be from -100 to 100"):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100_000,
        ")" * 100_000,
        "(" * 100_000 + ")" * 100_000,
        "(" * 100_000 + "]" * 100_000,
        "([" * 50_000 + ")" * 50_000,
        "(a:" + "1" * 100_000,
        "(a:1" + " " * 100_000 + "x",
        ":" * 100_000,
        ": " * 100_000,
        "\\" * 100_000,
        " " * 100_000 + "BREAK" + " " * 100_000,
        "BREAK " * 100_000,
    ],
    ids=lambda text: f"{text[:8]!r}-{text[-3:]!r}",
)
def test_hostile_texts_take_no_time(text):
    begin = time.process_time()
    with suppress(InvalidRequest):
        parse(text)
    assert time.process_time() - begin < 2


def test_a_deep_nest_with_a_word_is_refused():
    with pytest.raises(InvalidRequest, match="weight inf of 'a'"):
        parse("(" * 100_000 + "a" + ")" * 100_000)


@given(st.text(alphabet="ab ()[]:1.\\-BREAK\n"))
def test_any_text_is_read_or_refused(text):
    try:
        chunks = parse(text)
    except InvalidRequest:
        return
    kept = "".join(part.text for chunk in chunks for part in chunk)
    assert len(kept) <= len(text)
    assert all(abs(part.weight) <= 100 and part.text for chunk in chunks for part in chunk)
