"""Quantities as people read them."""

from sfumato.units import duration


def test_durations_in_words() -> None:
    words = {0: "0 s", 59: "59 s", 59.7: "1 min", 61: "1 min", 7190: "2 h 0 min", 190_800: "2 d 5 h"}
    assert {seconds: duration(seconds) for seconds in words} == words
