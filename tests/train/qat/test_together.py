"""Two processes train a checkpoint as one does with twice the micro-batches."""

import json
import sys

import pytest
from launching import accelerate_launch, launch, torchrun


@pytest.fixture
def train(checkpoints, pictures, tmp_path):
    """`train(out, launcher, accumulate)`: `sfumato train qat` in processes of its own; rows of its log."""
    (tmp_path / "own.toml").write_text('[denoiser]\nmode = "int8"\n')

    def train(out, launcher, accumulate):
        options = "--recipe own.toml --steps 10 --batch 2 --samples 2 --rate 1e-3 --range-rate 1e-2 --quiet"
        given = [checkpoints("sd"), tmp_path / out, "--data", pictures, "--accumulate", accumulate]
        arguments = ["-m", "sfumato", "train", "qat", *given, *options.split()]
        done = launch(tmp_path, launcher, arguments, timeout=900)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("own, ") == 1, "one process speaks"
        return [json.loads(line) for line in (tmp_path / f"{out}.run/log.jsonl").read_text().splitlines()]

    return train


@pytest.mark.slow
def test_the_loss_curve_is_the_same(train, tmp_path):
    one, other = train("one", [], 2), train("two", torchrun(), 1)
    assert [(row["step"], row["images"]) for row in one] == [(5, 20), (10, 40)]
    same(one, other)
    if sys.platform == "linux":  # MPI comes with the development tools there
        same(one, train("three", accelerate_launch(tmp_path), 1))


def same(ours, theirs):
    for row, other in zip(ours, theirs, strict=True):
        for name in ("step", "images", "loss", "data", "teacher"):
            assert other[name] == pytest.approx(row[name], rel=1e-3, abs=2e-5), name
