"""The training loop: what it trains, that it resumes exactly, and what it refuses."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import toy
from PIL import Image
from torch import nn
from toy import Toy, plan

from sfumato.errors import InvalidRequest, MissingDependency, SfumatoError
from sfumato.train import loop, optimizers, state
from sfumato.train.log import Log
from sfumato.train.muon import Muon

NAN = float("nan")


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


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize("error", [FULL, RuntimeError("[enforce fail] . unexpected pos 576 vs 534")])
def test_a_full_disk_keeps_the_last_checkpoint(error, tmp_path, monkeypatch):
    run(Toy(), tmp_path, 1)
    kept = (tmp_path / "checkpoint.pt").read_bytes()

    def full_disk(_, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(SfumatoError, match=r"checkpoint\.pt: no space left .*; .* holds the last good one"):
        run(Toy(), tmp_path, 2)
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept
    assert not list(tmp_path.glob("*.partial"))


def test_a_disk_too_full_for_the_log_is_named(tmp_path):
    run(Toy(), tmp_path, 1)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "log.jsonl").unlink(missing_ok=True)
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(SfumatoError, match=r"log\.jsonl: no space left on the device"):
        run(Toy(), tmp_path, 2, log_every=1)
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept


def test_a_disk_that_gets_full_leaves_no_half_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = Log(tmp_path, 10, 4, lambda _: None)
    log.add(0, 1, {"loss": 1.0}, {})
    whole = log.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 9, limits[1]))
        with pytest.raises(SfumatoError, match=r"log\.jsonl: no space left"):
            log.add(1, 1, {"loss": 1.0}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.path.read_bytes() == whole
    log.add(2, 1, {"loss": 1.0}, {})
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 3]


class FullBoard:
    """TensorBoard's writer where its file takes nothing more."""

    def __init__(self, *_, **__):
        pass

    def add_scalar(self, *_):
        raise FULL

    def close(self):
        raise FULL


def test_a_disk_too_full_for_tensorboard_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=FullBoard))
    with pytest.raises(SfumatoError, match="tensorboard: no space left on the device"):
        run(Toy(), tmp_path, log_every=1)


class Grouped(Toy):
    """The head's bias has a rate of its own and no average."""

    def groups(self):
        return {"biases": [self.head.bias]}

    def averaged(self):
        return {name: p for name, p in state.trained(self).items() if name != "head.bias"}


def load(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)


def test_a_resumed_run_with_groups_and_micro_batches_equals_an_uninterrupted_one(tmp_path):
    options = {"accumulate": 2, "rates": {"biases": 1e-3}, "schedule": "constant"}
    whole = run(Grouped(), tmp_path / "whole", **options)
    run(Grouped(), tmp_path / "resumed", stop_at=5, **options)
    resumed = run(Grouped(), tmp_path / "resumed", **options)
    assert whole.seen[10:] == resumed.seen and len(resumed.seen) == 10
    torch.testing.assert_close(load(tmp_path / "whole"), load(tmp_path / "resumed"), rtol=0, atol=0)


def test_a_step_is_the_mean_of_its_micro_batches(tmp_path):
    """Two micro-batches of four are one batch of the same eight."""

    one, two = Toy(), Toy()
    run(two, tmp_path / "two", 1, accumulate=2, ema_decay=None)
    micro = [loop._batch(Toy(), plan(1), 0, index) for index in range(2)]
    one.draw = lambda *_: tuple(torch.cat(parts) for parts in zip(*micro, strict=True))
    run(one, tmp_path / "one", 1, ema_decay=None)
    for ours, theirs in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)


def test_groups_have_their_rates_and_no_decay(tmp_path):
    task = Grouped()
    before = task.head.bias.item(), task.head.weight.clone()
    run(task, tmp_path, 1, rates={"biases": 1e-4}, schedule="constant", ema_decay=None, weight_decay=0.5)
    assert abs(task.head.bias.item() - before[0]) == pytest.approx(1e-4, rel=1e-3)
    moved = (task.head.weight - before[1] * (1 - 1e-2 * 0.5)).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-2), rtol=1e-3, atol=1e-6)


def test_rates_of_unknown_groups_are_refused(tmp_path):
    with pytest.raises(InvalidRequest, match=r"'ranges': the task has no such parameters; it has biases"):
        run(Grouped(), tmp_path, rates={"ranges": 1e-4})
    with pytest.raises(InvalidRequest, match="it has none"):
        run(Toy(), tmp_path, rates={"ranges": 1e-4})


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 0},
        {"batch": 0},
        {"save_every": 0},
        {"sample_every": 0},
        {"log_every": 0},
        {"clip": 0.0},
        {"clip": NAN},
        {"rate": -1e-3},
        {"rate": NAN},
        {"rate": math.inf},
        {"ema_decay": NAN},
    ],
)
def test_plans_that_cannot_be_followed_are_refused(options, tmp_path):
    ((name, value),) = options.items()
    said = {"ema_decay": "average's decay"}.get(name, name)
    with pytest.raises(InvalidRequest, match=f"^{said} {value}: must be .*[01]"):
        run(Toy(), tmp_path, **options)


def test_rates_of_groups_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(InvalidRequest, match=r"^rate of biases -0.1: must be a finite number, 0 or more$"):
        run(Grouped(), tmp_path, rates={"biases": -0.1})


def test_only_what_the_task_names_is_averaged(tmp_path):
    task = run(Grouped(), tmp_path)
    kept = load(tmp_path)
    assert "head.bias" not in kept["average"]
    assert torch.equal(task.head.bias, kept["model"]["head.bias"])
    assert not torch.equal(task.head.weight, kept["model"]["head.weight"])
    assert torch.equal(task.head.weight, kept["average"]["head.weight"])


@pytest.mark.parametrize("decay", [0, None])
def test_without_an_average_weights_stay_as_trained(decay, tmp_path):
    task = run(Toy(), tmp_path, ema_decay=decay)
    kept = load(tmp_path)
    assert kept["average"] == {} and torch.equal(task.head.weight, kept["model"]["head.weight"])


def test_a_constant_rate_has_no_warm_up():
    assert {optimizers.rate_at("constant", step, 100, 2e-5) for step in range(100)} == {2e-5}
    assert optimizers.rate_at("cosine", 0, 100, 2e-5) < 2e-5 / 5


class Diverging(Toy):
    """From its tenth forward pass on the loss, or a gradient alone, is not finite."""

    def __init__(self, loss, seen=10):
        super().__init__()
        self.loss, self.from_here = loss, seen

    def forward(self, x, target):
        figures = super().forward(x, target)
        if len(self.seen) < self.from_here:
            return figures
        if self.loss is None:  # the square root's slope at 0 is infinite, its value is not
            return {**figures, "loss": figures["loss"] + (self.head.bias * 0).abs().sqrt().sum()}
        return {**figures, "loss": figures["loss"] * self.loss}


@pytest.mark.parametrize(
    ("loss", "what"),
    [(float("nan"), "loss is nan"), (float("inf"), "loss is inf"), (None, "gradients are not finite")],
)
def test_a_diverged_run_stops_with_the_last_good_checkpoint(loss, what, tmp_path):
    with pytest.raises(
        SfumatoError, match=rf"step 10: the {what}; .*checkpoint\.pt .* after step 9: .*lower"
    ):
        run(Diverging(loss), tmp_path, 20)
    assert load(tmp_path)["step"] == 9
    run(Toy(), tmp_path, 20)
    assert load(tmp_path)["step"] == 20


def test_a_diverged_micro_batch_stops_too(tmp_path):
    with pytest.raises(SfumatoError, match=r"step 5: the loss is nan; .* after step 3"):
        run(Diverging(float("nan")), tmp_path, 20, accumulate=2)


def test_a_run_that_diverges_at_once_says_so(tmp_path):
    with pytest.raises(SfumatoError, match=r"step 1: the loss is nan, and no checkpoint .* lower"):
        run(Diverging(float("nan"), seen=1), tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_what_is_not_finite_is_not_saved(tmp_path):
    run(Toy(), tmp_path, 3)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    task = Toy()
    with torch.no_grad():
        task.head.bias.fill_(float("nan"))
    with pytest.raises(SfumatoError, match=r"step 6: model/head\.bias is not finite.*last good one"):
        state.save_checkpoint(tmp_path / "checkpoint.pt", 6, task, state.Ema({}, None), [])
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept


def test_a_resumed_run_takes_the_new_rate(tmp_path):
    run(Toy(), tmp_path, stop_at=6, schedule="constant")
    before = load(tmp_path)["model"]["head.bias"]
    run(Toy(), tmp_path, 7, schedule="constant", rate=0.0)
    assert torch.equal(load(tmp_path)["model"]["head.bias"], before)


def test_a_checkpoint_of_other_groups_is_refused(tmp_path):
    run(Toy(), tmp_path, 1)
    with pytest.raises(InvalidRequest, match="another optimizer"):
        run(Grouped(), tmp_path, 2)


def test_8_bit_adamw_needs_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(MissingDependency, match="pip install bitsandbytes"):
        run(Toy(), tmp_path, eight_bit=True)


def test_8_bit_adamw_that_does_not_work_here_is_named(tmp_path, monkeypatch):
    class Broken:
        def __init__(self, *_, **__):
            raise RuntimeError("no kernel for this device")

    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", SimpleNamespace(AdamW8bit=Broken))
    with pytest.raises(MissingDependency, match=r"does not work here \(no kernel"):
        run(Toy(), tmp_path, eight_bit=True)


def test_8_bit_adamw_resumes(tmp_path):
    pytest.importorskip("bitsandbytes")
    run(Toy(), tmp_path / "whole", eight_bit=True)
    run(Toy(), tmp_path / "resumed", eight_bit=True, stop_at=5)
    with pytest.raises(InvalidRequest, match="8-bit or not"):
        run(Toy(), tmp_path / "resumed")
    run(Toy(), tmp_path / "resumed", eight_bit=True)
    weights = [load(tmp_path / name)["model"] for name in ("whole", "resumed")]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_tensorboard_gets_figures_rates_and_samples(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def sample(step):
        return Image.new("RGB", (8, 4)) if step == 8 else None

    for stop_at in (5, None):
        loop.run(
            Grouped(), plan(8, sample_every=4, stop_at=stop_at), tmp_path, lambda _: None, on_sample=sample
        )
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"loss", "bias", "images_per_second", "rate", "matrix_rate", "rate/biases"} <= set(
        events.Tags()["scalars"]
    )
    assert [event.step for event in events.Scalars("loss")] == [4, 8]
    assert [(image.step, image.width) for image in events.Images("samples")] == [(8, 8)]


def test_without_tensorboard_a_run_is_silent_about_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run(Toy(), tmp_path)
    assert (tmp_path / "log.jsonl").exists() and not (tmp_path / "tensorboard").exists()


def test_ema_follows_the_published_warm_up():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema = state.Ema(state.trained(model), 0.9999)
    torch.nn.init.ones_(model.weight)
    ema.update()
    ema.update()
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
