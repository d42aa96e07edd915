"""Who takes part in a comparison, under which names."""

import json
import shutil

import pytest

from sfumato.compare.entries import take_part, unable
from sfumato.compare.worker import TORCH
from sfumato.errors import InvalidRequest


def test_ratios_make_entries_of_their_own(artifacts):
    entries, first = take_part([artifacts("sd")], None, (0.25, 0.5))
    assert [entry.token_merging for entry in entries] == [None, 0.25, 0.5]
    assert [entry.name for entry in entries] == ["sd", "sd merging 0.25", "sd merging 0.5"]
    assert first == 0


def test_a_reference_of_its_own_and_pytorch_take_part_as_they_are(artifacts):
    models, reference = [artifacts("sd")], artifacts("sdxl")
    entries, first = take_part(models, reference, (0.5,))
    assert [(entry.name, entry.token_merging) for entry in entries] == [
        ("sdxl", None),
        ("sd", None),
        ("sd merging 0.5", 0.5),
    ]
    assert first == 0
    torch = f"{TORCH}{artifacts('sd')}"
    entries, _ = take_part([torch, artifacts("sd")], None, (0.5,))
    assert [entry.token_merging for entry in entries] == [None, None, 0.5]


def test_ways_of_reuse_make_entries_of_their_own(artifacts):
    entries, _ = take_part([artifacts("sd")], None, (), ("off", "balanced", "fast", "fast"))
    assert [(entry.name, entry.reuse) for entry in entries] == [
        ("sd", None),
        ("sd reuse balanced", "balanced"),
        ("sd reuse fast", "fast"),
    ]


def test_what_a_model_does_by_itself_is_not_tried_twice(artifacts, tmp_path):
    folder = shutil.copytree(artifacts("sd"), tmp_path / "quick")
    manifest = json.loads((folder / "sfumato.json").read_text())
    manifest["sampling"]["reuse"] = "fast"
    (folder / "sfumato.json").write_text(json.dumps(manifest))
    entries, _ = take_part([artifacts("sd"), folder], None, (), ("off", "fast"))
    assert [entry.name for entry in entries] == ["sd", "quick", "sd reuse fast", "quick reuse off"]


def test_a_model_that_merges_already_keeps_its_own_ratio(artifacts, tmp_path):
    folder = shutil.copytree(artifacts("sd"), tmp_path / "merged")
    manifest = json.loads((folder / "sfumato.json").read_text())
    manifest["token_merging"] = {"ratio": 0.5, "method": "match"}
    (folder / "sfumato.json").write_text(json.dumps(manifest))
    entries, _ = take_part([artifacts("sd"), folder], None, (0.3,), ("fast",))
    assert [entry.name for entry in entries if entry.source == str(folder)] == ["merged", "merged reuse fast"]
    (said,) = unable(entries, (0.3,), ("fast",))
    assert said.startswith("merged merges tokens already")
    assert unable(entries, (), ("fast",)) == unable(entries, (0,), ()) == []


def test_ratios_and_reuse_go_together(artifacts):
    entries, _ = take_part([artifacts("sd")], None, (0.5,), ("fast",))
    assert [(entry.name, entry.token_merging, entry.reuse) for entry in entries] == [
        ("sd", None, None),
        ("sd reuse fast", None, "fast"),
        ("sd merging 0.5", 0.5, None),
        ("sd merging 0.5 reuse fast", 0.5, "fast"),
    ]


@pytest.mark.parametrize(("ratios", "reuses"), [((0,), ()), ((), ("off",)), ((), ())])
def test_a_model_alone_is_no_comparison(artifacts, ratios, reuses):
    with pytest.raises(InvalidRequest, match=r"only .*sd.* to compare"):
        take_part([artifacts("sd")], None, ratios, reuses)


def test_reuse_of_checkpoints_in_pytorch_alone_is_refused(artifacts):
    torch = f"{TORCH}{artifacts('sd')}"
    for reference in (None, artifacts("sdxl")):
        with pytest.raises(InvalidRequest, match="reuse: checkpoints in PyTorch have none"):
            take_part([torch, torch], reference, (), ("fast",))
