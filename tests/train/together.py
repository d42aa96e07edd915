"""A run for several processes: one parameter is used now and then, one never; as a script, OUT ACCUMULATE.

OTHER_OUT is what processes but the main one take for OUT.
"""

import os
import sys
from pathlib import Path

import torch
from torch import nn
from toy import Toy, plan

from sfumato.train.loop import is_main, run


class Uneven(Toy):
    def __init__(self):
        super().__init__()
        self.now_and_then = nn.Parameter(torch.ones(3))
        self.never = nn.Parameter(torch.ones(3))

    def forward(self, x, target):
        figures = super().forward(x, target)
        if x.sum() > 0:
            figures["loss"] = figures["loss"] + self.now_and_then.square().sum() * x.mean()
        return figures

    def groups(self):
        return {"now and then": [self.now_and_then]}


if __name__ == "__main__":
    out, accumulate = Path(sys.argv[1]), int(sys.argv[2])
    said = []
    task = Uneven()
    if not is_main():  # what another process begins with does not count
        nn.init.zeros_(task.head.weight)
        out = Path(os.environ.get("OTHER_OUT", out))
    options = {"accumulate": accumulate, "rates": {"now and then": 1e-3}, "sample_every": 5, "log_every": 1}
    run(task, plan(10, **options), out, said.append, lambda step: said.append(f"sample {step}"))
    name = "main" if is_main() else "other"
    torch.save({"weights": task.state_dict(), "said": len(said)}, out / f"{name}.pt")
