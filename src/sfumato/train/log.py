"""What a run tells on its way: lines, `log.jsonl`, and TensorBoard where it is installed."""

import errno
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfumato.files import write_errors


class Log:
    """Prints progress with images per second and the time left, and appends it to `log.jsonl`.

    steps: of the whole run, and of them `first` are done. batch: pictures a step, in all processes.
    Raises SfumatoError, naming the file, where the disk is full.
    """

    def __init__(
        self, folder: Path, steps: int, batch: int, say: Callable[[str], None], first: int = 0
    ) -> None:
        self.path = folder / "log.jsonl"
        self.steps, self.batch, self.say = steps, batch, say
        self.events = folder / "tensorboard"
        self.board = _board(self.events, first)
        self.since: tuple[float, int] | None = None
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, step: int, every: int, figures: Mapping[str, float], rates: Mapping[str, float]) -> None:
        """Take a step's figures in; every so many steps their means are told."""
        if self.since is None:
            self.since = (time.monotonic(), step)
        self.count += 1
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if (step + 1) % every == 0:
            self._write(step + 1, rates)

    def picture(self, step: int, image: Image.Image | None) -> None:
        """Show a grid of samples, if there is one, in TensorBoard."""
        if self.board is None or image is None:
            return
        with write_errors(self.events):
            self.board.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")
            self.board.flush()

    def close(self) -> None:
        if self.board is not None:
            with write_errors(self.events):
                self.board.close()

    def _write(self, done: int, rates: Mapping[str, float]) -> None:
        assert self.since is not None
        began, first = self.since
        rate = (done - first) / max(1e-9, time.monotonic() - began)
        means = {name: round(total / self.count, 5) for name, total in self.sums.items()}
        left = (self.steps - done) / rate
        row = {
            "step": done,
            "images": done * self.batch,
            **means,
            "images_per_second": round(rate * self.batch, 1),
        }
        _append(self.path, json.dumps(row) + "\n")
        self._show(done, {**means, "images_per_second": rate * self.batch, **rates})
        figures = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        rate_text = f"{rate * self.batch:.1f} images/s, {left / 60:.0f} min left"
        self.say(f"step {done}/{self.steps} {figures} {rate_text}")
        self.sums, self.count = {}, 0

    def _show(self, done: int, values: Mapping[str, float]) -> None:
        if self.board is None:
            return
        with write_errors(self.events):
            for name, value in values.items():
                self.board.add_scalar(name, value, done)
            self.board.flush()


def _append(path: Path, line: str) -> None:
    """Add a line to a file, whole or not at all."""
    data = line.encode()
    with write_errors(path), path.open("ab", buffering=0) as file:
        end = file.tell()
        if file.write(data) < len(data):  # a disk that gets full takes a part
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _board(folder: Path, first: int) -> Any:
    """TensorBoard's writer, which drops what a killed run told after step `first`; None where missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    with write_errors(folder):
        return SummaryWriter(folder, purge_step=first + 1)
