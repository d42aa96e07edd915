"""JSON of which every reader makes the same document."""

import pytest

from sfumato.strict_json import parse_json


def test_documents():
    assert parse_json(b'{"a": [{"b": 1}, {"b": 2}]}') == parse_json('{"a": [{"b": 1}, {"b": 2}]}')


def test_a_key_given_twice():
    with pytest.raises(ValueError, match="key 'b' is given twice"):
        parse_json('{"a": {"b": 1, "c": 2, "b": 1}}')
