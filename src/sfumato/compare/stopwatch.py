"""Times of one picture, whatever makes it."""

import time
from itertools import pairwise


class Stopwatch:
    """What each network took, all its calls together, and each step: wall time in seconds.

    denoiser: the network whose first call begins the first step.
    """

    def __init__(self, denoiser: str) -> None:
        self.components: dict[str, float] = {}
        self.marks: list[float] = []
        """When the first step began, and when each ended, by `time.perf_counter`."""
        self._denoiser = denoiser

    def ran(self, component: str, began: float, ended: float) -> None:
        """Count one call of a network."""
        if component == self._denoiser and not self.marks:
            self.marks.append(began)
        self.components[component] = self.components.get(component, 0.0) + ended - began

    def step(self) -> None:
        """End a step."""
        self.marks.append(time.perf_counter())

    @property
    def steps(self) -> tuple[float, ...]:
        """Seconds of each step."""
        return tuple(end - begin for begin, end in pairwise(self.marks))
