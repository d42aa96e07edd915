"""Two processes of `torchrun` train as one does with twice the micro-batches."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from launching import launch, torchrun

SCRIPT = Path(__file__).with_name("together.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of the same run in one process with two micro-batches a step, and in two processes with one."""
    home = tmp_path_factory.mktemp("home")
    folders = home / "one", home / "two"
    for launcher, folder, accumulate in (([], folders[0], 2), (torchrun(), folders[1], 1)):
        done = start(home, launcher, folder, accumulate)
        assert done.returncode == 0, done.stderr
    return folders


def start(home, launcher, out, accumulate, **given):
    paths = {"PYTHONPATH": str(SCRIPT.parent.parent), **given}
    return launch(home, launcher, [SCRIPT, out, accumulate], timeout=300, **paths)


def rows(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in ("step", "images", "loss", "bias")} for row in lines]


@pytest.mark.slow
def test_the_loss_curve_is_the_same(runs):
    one, two = map(rows, runs)
    assert [row["step"] for row in one] == list(range(1, 11)) and one[-1]["images"] == 80
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-5)


@pytest.mark.slow
def test_weights_and_optimizers_are_the_same(runs):
    one, two = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in runs)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert torch.equal(two["model"]["never"], torch.ones(3))
    assert not torch.equal(two["model"]["now_and_then"], torch.ones(3))


@pytest.mark.slow
def test_every_process_ends_with_the_same_weights_and_one_speaks(runs):
    main, other = (torch.load(runs[1] / f"{name}.pt", weights_only=True) for name in ("main", "other"))
    torch.testing.assert_close(main["weights"], other["weights"], rtol=0, atol=0)
    assert main["said"] == 12 and other["said"] == 0


@pytest.mark.slow
def test_a_process_without_the_others_checkpoint_is_refused(runs, tmp_path):
    """As on a second machine whose disk is its own."""
    shutil.copytree(runs[1], tmp_path / "out")
    done = start(tmp_path, torchrun(), tmp_path / "out", 1, OTHER_OUT=str(tmp_path / "own"))
    assert done.returncode != 0
    assert "one process goes on from step 0, another from step 10; let all of them use" in done.stderr
