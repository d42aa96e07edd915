"""Cancelling: it takes effect within one step, and leaves no memory behind."""

import os
import sys
from pathlib import Path

import pytest

from sfumato import Pipeline
from sfumato.errors import Cancelled
from sfumato.runtime.networks import Network

PROMPT = "noto red apple"


def cancelled_at(pipe: Pipeline, step: int, seed: int = 7) -> list[int]:
    """The steps that a request of 50 did before it was cancelled, asked to from `step` on."""
    done: list[int] = []
    with pytest.raises(Cancelled):
        pipe(
            PROMPT,
            seed=seed,
            steps=50,
            on_step=lambda step: done.append(step.index),
            cancel=lambda: len(done) >= step,
        )
    return done


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("memory", ["high", "low"])
def test_stops_within_one_step(memory, monkeypatch):
    pipe, calls, call = Pipeline.load("mini", memory=memory), [], Network.__call__
    monkeypatch.setattr(
        Network, "__call__", lambda self, *given: (calls.append(self.path.parent.name), call(self, *given))[1]
    )
    assert cancelled_at(pipe, step=3) == [0, 1, 2]
    assert calls.count("transformer") == 3
    assert "vae_decoder" not in calls


def test_the_next_request_is_as_if_nothing_had_been():
    pipe = Pipeline.load("mini")
    expected = pipe(PROMPT, seed=7, steps=2).images[0].tobytes()
    cancelled_at(pipe, step=1)
    assert pipe(PROMPT, seed=7, steps=2).images[0].tobytes() == expected


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize(("memory", "requests"), [("high", 100), ("low", 30)])
def test_cancelled_requests_leave_memory_flat(memory, requests):
    """In low memory each compiles its networks anew, whose weights are 20 MB."""
    pipe = Pipeline.load("mini", memory=memory)
    for seed in range(5):
        cancelled_at(pipe, step=1, seed=seed)
    before = resident()
    for seed in range(requests):
        cancelled_at(pipe, step=1, seed=seed)
    assert resident() - before < 10e6
