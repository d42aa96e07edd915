"""Waiting in line: one at a time, first come, first served, and nobody waits for one who has left."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import InvalidRequest

LOOK = 0.2
"""Seconds after which a waiting one looks whether it still wants its turn."""


class Line:
    """Who is at work and who waits for a turn; safe for threads.

    name: of what is waited for, in errors. at_once: how many may work at the same time. waiting: how many
    more may wait.
    """

    def __init__(self, name: str, at_once: int = 1, waiting: int = 16) -> None:
        self._name = name
        self._at_once = at_once
        self._waiting = waiting
        self._tickets: list[object] = []
        self._moved = threading.Condition()

    def __len__(self) -> int:
        """How many work or wait."""
        with self._moved:
            return len(self._tickets)

    @contextmanager
    def turn(self, stop_if: Callable[[], None], tell: Callable[[int], None]) -> Iterator[None]:
        """Wait for a turn, which lasts as long as the block.

        tell: told how many are to finish first, whenever that changes and it is not none. stop_if: called now
        and then; what it raises ends the waiting. Raises InvalidRequest where too many wait already.
        """
        ticket = object()
        with self._moved:
            if len(self._tickets) >= self._at_once + self._waiting:
                raise InvalidRequest(
                    f"{self._name}: {self._waiting} are waiting already, which is all there is room for; "
                    "try again in a while"
                )
            self._tickets.append(ticket)
        try:
            self._wait(ticket, stop_if, tell)
            yield
        finally:
            with self._moved:
                self._tickets.remove(ticket)
                self._moved.notify_all()

    def _wait(self, ticket: object, stop_if: Callable[[], None], tell: Callable[[int], None]) -> None:
        told = 0
        while True:
            stop_if()
            with self._moved:
                ahead = max(0, self._tickets.index(ticket) + 1 - self._at_once)
                if ahead == told:
                    if not ahead:
                        return
                    self._moved.wait(LOOK)
                    continue
            told = ahead
            if ahead:
                tell(ahead)
