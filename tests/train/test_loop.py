"""The training loop: what it trains, that it resumes exactly, and what it refuses."""

import os
import signal
import subprocess
import sys

import pytest
import torch
import toy
from torch import nn
from toy import Toy, plan

from sfumato.errors import InvalidRequest, SfumatoError
from sfumato.train import loop, state
from sfumato.train.muon import Muon


def run(task, out, steps=10, **options):
    loop.run(task, plan(steps, **options), out, say=lambda _: None)
    return task


def test_everything_trainable_is_trained_and_nothing_else(tmp_path):
    before = {name: p.clone() for name, p in Toy().named_parameters()}
    after = dict(run(Toy(), tmp_path).named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"body.weight", "body.bias", "head.weight", "head.bias"}


def test_loss_falls(tmp_path):
    lines = []
    loop.run(Toy(), plan(200), tmp_path, say=lines.append)
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines]
    assert losses[-1] < 0.5 * losses[0]
    assert "images/s" in lines[-1] and "min left" in lines[-1]


def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path):
    """kill -9 in step 8, after the checkpoint of step 6: the same batches, weights and optimizer state."""

    def start(out, **environment):
        command = [sys.executable, toy.__file__, out]
        return subprocess.run(command, env=os.environ | environment, check=False).returncode

    assert start(tmp_path / "whole") == 0
    assert start(tmp_path / "killed", KILL_AT="8") == -signal.SIGKILL
    assert torch.load(tmp_path / "killed/checkpoint.pt", weights_only=True)["step"] == 6
    assert start(tmp_path / "killed") == 0
    whole, killed = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "killed")
    )
    torch.testing.assert_close(killed, whole, rtol=0, atol=0)
    assert (tmp_path / "killed/log.jsonl").read_text().count("\n") >= 2


def test_batches_depend_on_seed_and_step_alone(tmp_path):
    first, second, other = (Toy() for _ in range(3))
    run(first, tmp_path / "a", 4)
    run(second, tmp_path / "b", 4)
    run(other, tmp_path / "c", 4, seed=1)
    assert first.seen == second.seen and len(set(first.seen)) == 4
    assert not set(first.seen) & set(other.seen)


def test_stop_at_ends_early_and_the_run_goes_on(tmp_path):
    run(Toy(), tmp_path, stop_at=5)
    task = run(Toy(), tmp_path)
    assert len(task.seen) == 5


def test_samples_see_the_averaged_weights(tmp_path):
    task = Toy()
    seen = []
    loop.run(
        task,
        plan(4, sample_every=4),
        tmp_path,
        say=lambda _: None,
        on_sample=lambda step: seen.append((step, task.head.weight.clone())),
    )
    average = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["average"]
    assert [step for step, _ in seen] == [4]
    assert torch.equal(seen[0][1], average["head.weight"])


def test_checkpoint_of_another_architecture_is_refused(tmp_path):
    run(Toy(), tmp_path, 1)
    other = Toy()
    other.head = nn.Linear(4, 2)
    with pytest.raises(InvalidRequest, match=r"another architecture: head\.bias is \(1,\), here \(2,\)"):
        run(other, tmp_path, 2)


def test_damaged_checkpoint_is_refused(tmp_path):
    run(Toy(), tmp_path, 1)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InvalidRequest, match="delete it to begin anew"):
        run(Toy(), tmp_path, 2)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    run(Toy(), tmp_path, 1)
    kept = (tmp_path / "checkpoint.pt").read_bytes()

    def full_disk(_, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(SfumatoError, match="last good one"):
        run(Toy(), tmp_path, 2)
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept
    assert not list(tmp_path.glob("*.partial"))


def test_ema_follows_the_published_warm_up():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema = state.Ema(model, 0.9999)
    torch.nn.init.ones_(model.weight)
    ema.update(model)
    ema.update(model)
    first = 1 - 1 / 10
    assert float(ema.shadow["weight"]) == pytest.approx(first + (1 - first) * (1 - 2 / 11))


def test_convolutions_are_matrices_to_muon():
    """A 1x1 convolution in either layout moves as the matrix that it is."""
    torch.manual_seed(0)
    weight, gradient = torch.randn(6, 4), torch.randn(6, 4)
    matrix = nn.Parameter(weight.clone())
    matrix.grad = gradient.clone()
    torch.optim.Muon([matrix], lr=0.1).step()
    for layout in (torch.contiguous_format, torch.channels_last):
        kernel = nn.Parameter(weight[:, :, None, None].clone().to(memory_format=layout))
        kernel.grad = gradient[:, :, None, None].clone()
        Muon([kernel], lr=0.1).step()
        torch.testing.assert_close(kernel[:, :, 0, 0], matrix)
