"""Settings that a run keeps."""

import json

import pytest

from sfumato.errors import InvalidRequest
from sfumato.train.settings import SETTINGS, keep_settings

BEGUN = {"rank": 0, "losses": {"data": 1.0}, "rates": {"ranges": 1e-3}, "betas": (0.9, 0.999)}


def test_the_same_settings_go_on(tmp_path):
    keep_settings(tmp_path, BEGUN)
    kept = (tmp_path / SETTINGS).read_bytes()
    keep_settings(tmp_path, BEGUN)
    assert (tmp_path / SETTINGS).read_bytes() == kept


@pytest.mark.parametrize(
    "change", [{"rank": 4}, {"losses": {"data": 2.0}}, {"betas": (0.9, 0.98)}, {"more": 1}]
)
def test_other_settings_are_refused_by_name(change, tmp_path):
    keep_settings(tmp_path, BEGUN)
    with pytest.raises(InvalidRequest, match=f"was begun with {next(iter(change))} ") as error:
        keep_settings(tmp_path, BEGUN | change)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    keep_settings(tmp_path, BEGUN)


@pytest.mark.parametrize("text", ["", "{", "3"])
def test_damaged_settings_are_refused(text, tmp_path):
    keep_settings(tmp_path, BEGUN)
    (tmp_path / SETTINGS).write_text(text)
    with pytest.raises(InvalidRequest, match=r"settings\.json: damaged .* to begin anew"):
        keep_settings(tmp_path, BEGUN)


def test_settings_are_readable(tmp_path):
    keep_settings(tmp_path, BEGUN)
    assert json.loads((tmp_path / SETTINGS).read_text())["rates"] == {"ranges": 1e-3}
