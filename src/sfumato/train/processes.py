"""Processes that train one model together: what they share, and which of them writes."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, distributed, nn

from sfumato.errors import InvalidRequest

BUCKET = 1 << 24
"""Numbers that are sent at once: 64 MB of float32."""


def is_main() -> bool:
    """Whether this process writes files and prints: the only one, or the first of several."""
    return bool(_state().is_main_process)


def device() -> torch.device:
    """Where this process trains."""
    return _state().device


def on_cpu() -> bool:
    """Whether training is on the CPU: as `accelerate launch --cpu` says, or where nothing else is.

    Told of no CPU, accelerate 1.15 takes the processes that torchrun starts on such a machine for strangers.
    """
    return bool(parse_flag_from_env("ACCELERATE_USE_CPU", not torch.accelerator.is_available()))


def _state() -> PartialState:
    return PartialState(cpu=on_cpu())


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder that exists: who comes second waits until it is free."""
    import fcntl  # POSIX only

    _state()  # processes meet where each waits for all, which none could that waits for the lock
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def processes() -> int:
    """How many train together."""
    together = distributed.is_available() and distributed.is_initialized()
    return int(distributed.get_world_size()) if together else 1


@torch.no_grad()
def share_weights(parameters: list[nn.Parameter]) -> None:
    """Give every process the main process's values."""
    if processes() > 1:
        _in_buckets(parameters, lambda flat: distributed.broadcast(flat, 0))


def check_same_step(step: int, checkpoint: Path) -> None:
    """Raise InvalidRequest where processes would go on from other steps, as their checkpoints say."""
    if processes() == 1:
        return
    ends = torch.tensor([step, -step], device=device())
    distributed.all_reduce(ends, distributed.ReduceOp.MIN)
    least, most = int(ends[0]), -int(ends[1])
    if least != most:
        raise InvalidRequest(
            f"{checkpoint}: one process goes on from step {least}, another from step {most}; let all of them "
            "use the same folder, on a disk that the machines share"
        )


@torch.no_grad()
def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace gradients by their means over the processes; what none of them used stays without one.

    It stands where DistributedDataParallel would: that one wants every parameter used in each backward pass.
    """
    count = processes()
    if count == 1 or not parameters:
        return
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    distributed.all_reduce(used)
    shared = [p for p, times in zip(parameters, used.tolist(), strict=True) if times]
    for p in shared:
        if p.grad is None:
            p.grad = torch.zeros_like(p)

    def average(flat: Tensor) -> None:
        distributed.all_reduce(flat)
        flat.div_(count)

    _in_buckets([p.grad for p in shared], average)


def mean_figures(sums: dict[str, Tensor], count: int) -> dict[str, float]:
    """Means over the processes of scalars that each has summed `count` times; the names must be the same."""
    values = torch.stack([value.detach().float().reshape(()) for value in sums.values()])
    if processes() > 1:
        distributed.all_reduce(values)
    means: list[float] = (values / (count * processes())).tolist()
    return dict(zip(sums, means, strict=True))


def _in_buckets(tensors: Iterable[Tensor], collective: Callable[[Tensor], object]) -> None:
    """Run a collective on flat copies of the tensors, whatever their layout, and bring the results back."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in bucket])
        collective(flat)
        for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
