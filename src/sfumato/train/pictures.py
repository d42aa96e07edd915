"""A folder of pictures with captions as training data: every picture goes through the VAE once."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from sfumato.convert.defaults import vae_factor
from sfumato.errors import InvalidRequest
from sfumato.files import atomic_folder, check_space, hash_file
from sfumato.runtime.pictures import fit, open_picture
from sfumato.train.embedded.latents import encoder_digest, scaling, to_tensor
from sfumato.train.metadata import Captioned
from sfumato.train.processes import device, is_main

SKIPPED_SHARE = 0.05
NAMED = 3
MOMENTS, INDEX = "moments.f16", "index.json"
BATCH_PIXELS = 1 << 20
SAY_EVERY = 30.0


@dataclass(frozen=True)
class PictureExamples:
    """Pictures as the VAE's distributions over their latents, and the captions of each.

    moments: scaled means and standard deviations, float16 [n, versions, 2, channels, height, width]; the
        second version, where there is one, is mirrored.
    """

    moments: np.ndarray
    captions: list[tuple[str, ...]]

    def draw(self, size: int, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
        """Latents sampled anew from `size` pictures' distributions, and one caption of each."""
        picks = rng.integers(len(self.captions), size=size)
        versions = rng.integers(self.moments.shape[1], size=size)
        mean, deviation = self.moments[picks, versions].astype(np.float32).swapaxes(0, 1)
        latents = mean + deviation * rng.standard_normal(mean.shape, np.float32)
        texts = [self.captions[i] for i in picks]
        return torch.from_numpy(latents), [each[int(rng.integers(len(each)))] for each in texts]


@dataclass(frozen=True)
class _Kept:
    """What is known of a folder's encoded pictures: which ones, how many were enlarged, what was left out."""

    rows: list[int]
    shape: list[int]
    enlarged: int
    skipped: list[str]


def open_pictures(
    captioned: list[Captioned],
    vae: Any,
    out: Path,
    side: int | None,
    mirror: bool,
    say: Callable[[str], None],
) -> PictureExamples:
    """The pictures as squares of `side` pixels: scaled by the shorter side, cropped in the middle.

    A few that cannot be read are left out. Raises InvalidRequest where they are more than SKIPPED_SHARE, and
    for a side that the VAE does not take.
    """
    side = _side(vae, side)
    skipped = [f"{each.path}: no such file" for each in captioned if not each.path.is_file()]
    _check_share(skipped, len(captioned))
    folder = out / f"latents-{_digest(captioned, vae, side, mirror)}"
    if not folder.exists():
        say(f"encoding {len(captioned)} pictures as {side}x{side}, once")
        with atomic_folder(folder) as partial:
            _encode_all(captioned, vae, side, mirror, partial, say)
    try:
        kept = _Kept(**json.loads((folder / INDEX).read_text()))
        moments = np.memmap(folder / MOMENTS, np.float16, "r", shape=(len(kept.rows), *kept.shape))
        used = [captioned[row].captions for row in kept.rows]
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise InvalidRequest(
            f"{folder} is damaged ({error}); remove it, to encode the pictures again"
        ) from error
    for line in _remarks(kept, used, len(captioned), side) if is_main() else ():
        say(line)
    return PictureExamples(moments, used)


def _remarks(kept: _Kept, used: list[tuple[str, ...]], total: int, side: int) -> Iterator[str]:
    if kept.skipped:
        yield f"{len(kept.skipped)} of {total} pictures are left out: {_named(kept.skipped)}"
    if kept.enlarged:
        yield f"{kept.enlarged} of {total} pictures are smaller than {side}x{side} and were enlarged"
    if empty := sum(not all(texts) for texts in used):
        yield f"{empty} of {total} pictures have an empty caption: they teach what no prompt gives"


def _side(vae: Any, side: int | None) -> int:
    multiple = vae_factor(vae.config)
    side = int(vae.config.sample_size) if side is None else side
    if side < multiple or side % multiple:
        raise InvalidRequest(f"side {side}: must be a multiple of {multiple}, as this VAE's pictures are")
    return side


def _digest(captioned: list[Captioned], vae: Any, side: int, mirror: bool) -> str:
    """What the latents depend on: the pictures, how they are brought to size, the encoder."""
    digest = hashlib.sha256(json.dumps([side, mirror]).encode())
    digest.update(encoder_digest(vae))
    for each in captioned:
        digest.update((hash_file(each.path) if each.path.is_file() else "missing").encode())
    return digest.hexdigest()[:16]


def _check_share(skipped: list[str], total: int) -> None:
    if len(skipped) > SKIPPED_SHARE * total:
        raise InvalidRequest(
            f"{len(skipped)} of {total} pictures cannot be used, and at most {SKIPPED_SHARE:.0%} may be left "
            f"out: {_named(skipped)}"
        )


def _named(skipped: list[str]) -> str:
    more = f"; and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
    return "; ".join(skipped[:NAMED]) + more


def _encode_all(
    captioned: list[Captioned], vae: Any, side: int, mirror: bool, folder: Path, say: Callable[[str], None]
) -> None:
    """Write what `open_pictures` reads, picture by picture: no more than a batch is held in memory."""
    squares = _Squares(captioned, side)
    rows: list[int] = []
    shape: list[int] = []
    said = time.monotonic()
    with (folder / MOMENTS).open("wb") as file, _on_device(vae):
        for numbers, pictures in squares.batches(max(1, BATCH_PIXELS // side**2)):
            moments = _moments(vae, pictures, mirror)
            shape = list(moments.shape[1:])
            if not rows:
                check_space(folder, len(captioned) * moments[0].nbytes)
            _append(file, moments)
            rows += numbers
            if time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                say(f"encoded {numbers[-1] + 1}/{len(captioned)} pictures")
    kept = _Kept(rows, shape, squares.enlarged, squares.skipped)
    (folder / INDEX).write_text(json.dumps(kept.__dict__))


def _append(file: BinaryIO, moments: np.ndarray) -> None:
    file.write(np.ascontiguousarray(moments).data)


class _Squares:
    """Reads pictures and brings them to size; counts what it leaves out and what it enlarges."""

    def __init__(self, captioned: list[Captioned], side: int) -> None:
        self.captioned, self.side = captioned, side
        self.skipped: list[str] = []
        self.enlarged = 0

    def batches(self, size: int) -> Iterator[tuple[list[int], np.ndarray]]:
        """Positions and pictures (uint8 [n, side, side, 3]), at most `size` at once."""
        numbers: list[int] = []
        pictures: list[np.ndarray] = []
        for number, each in enumerate(self.captioned):
            picture = self._open(each.path)
            if picture is not None:
                numbers.append(number)
                pictures.append(picture)
            if len(pictures) == size or (pictures and number + 1 == len(self.captioned)):
                yield numbers, np.stack(pictures)
                numbers, pictures = [], []

    def _open(self, path: Path) -> np.ndarray | None:
        try:
            image = open_picture(path)
        except InvalidRequest as error:
            self.skipped.append(str(error))
            _check_share(self.skipped, len(self.captioned))
            return None
        self.enlarged += min(image.size) < self.side
        return np.asarray(fit(image, (self.side, self.side)))


@torch.no_grad()
def _moments(vae: Any, pictures: np.ndarray, mirror: bool) -> np.ndarray:
    """Scaled means and standard deviations, float16 [n, versions, 2, channels, height, width]."""
    shift, scale = scaling(vae)
    place = vae.device
    x = to_tensor(pictures)
    versions = []
    for version in (x, x.flip(3)) if mirror else (x,):
        with torch.autocast(place.type, torch.bfloat16):
            posterior = vae.encode(version.to(place)).latent_dist
        moments = ((posterior.mean.float() - shift) * scale, posterior.std.float() * scale)
        versions.append(torch.stack(moments, 1).half().cpu())
    stacked: np.ndarray = torch.stack(versions, 1).numpy()
    return stacked


@contextmanager
def _on_device(vae: Any) -> Iterator[None]:
    """Have the VAE where the training runs, and back again."""
    before = vae.device
    vae.to(device())
    try:
        yield
    finally:
        vae.to(before)
