"""From the times of pictures to a row's figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

LEAST_STEPS = 8
"""Of a first picture whose steps differ: with fewer, reuse and caches stay off."""


@dataclass(frozen=True)
class Picture:
    """Seconds from the question to a PNG in memory; marks: when each step ended."""

    seconds: float
    marks: tuple[float, ...]

    @property
    def intervals(self) -> list[float]:
        """Seconds of each step but the first, which nobody tells apart from the encoding of texts."""
        return [later - earlier for earlier, later in pairwise(self.marks)]

    def scaled(self, steps: int, step: float) -> float:
        """Seconds of a picture of so many steps: what is no step stays, every further step takes `step`."""
        return self.seconds - sum(self.intervals) + (steps - 1) * step


@dataclass(frozen=True)
class Outing:
    """One process. first_seconds: from the command to the first picture's PNG."""

    first_seconds: float
    pictures: tuple[Picture, ...]
    peak_memory_bytes: int


@dataclass(frozen=True)
class Figures:
    """Medians over the rounds, in seconds; warm and cold by the number of steps.

    step: the median one; the mean one where steps differ. start: what a first picture takes longer than the
    next: the interpreter, libraries, loading, compiling. cold: start and warm.
    """

    step: float
    start: float
    warm: dict[int, float]
    cold: dict[int, float]
    peak_memory_bytes: int


def asked(steps: int, of: Sequence[int], *, whole: bool) -> tuple[int, ...]:
    """Steps of the pictures of one process: twice the same, cold and warm, and those to be run in full."""
    first = max(steps, LEAST_STEPS) if whole else steps
    return (first, first, *(of if whole else ()))


def figures(outings: Sequence[Outing], of: Sequence[int], *, whole: bool) -> Figures:
    """What one round or more come to; `of` and `whole` as for `asked`."""
    if whole:
        full = {steps: [each.pictures[2 + n] for each in outings] for n, steps in enumerate(of)}
        step = median(fmean(picture.intervals) for picture in full[of[-1]])
        warm = {steps: median(picture.seconds for picture in full[steps]) for steps in of}
    else:
        pictures = [each.pictures[1] for each in outings]
        step = median(interval for picture in pictures for interval in picture.intervals)
        warm = {steps: median(picture.scaled(steps, step) for picture in pictures) for steps in of}
    start = median(each.first_seconds - each.pictures[1].seconds for each in outings)
    return Figures(
        step=step,
        start=start,
        warm=warm,
        cold={steps: start + seconds for steps, seconds in warm.items()},
        peak_memory_bytes=max(each.peak_memory_bytes for each in outings),
    )
