"""A task of two layers for the training loop; as a script, one run, killed where KILL_AT says so."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from sfumato.train.loop import Plan, Task, run


class Toy(Task):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(2, 4, 3, padding=1).to(memory_format=torch.channels_last)
        self.head = nn.Linear(4, 1)
        self.frozen = nn.Linear(4, 1).requires_grad_(False)
        self.seen = []

    def draw(self, size, rng, generator):
        x = torch.randn(size, 2, 4, 4, generator=generator)
        self.seen.append(float(x.sum()) + rng.random())
        if len(self.seen) == int(os.environ.get("KILL_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        return x, x.mean((1, 2, 3))

    def forward(self, x, target):
        y = self.head(torch.tanh(self.body(x)).mean((2, 3)).float())[:, 0]
        return {"loss": (y - target).square().mean(), "bias": self.head.bias.sum()}

    def matrices(self):
        return [self.body.weight]


def plan(steps, **options):
    return Plan(**{"steps": steps, "batch": 4, "rate": 1e-2, "save_every": 3, "log_every": 4, **options})


if __name__ == "__main__":
    run(Toy(), plan(10), Path(sys.argv[1]), say=lambda _: None)
