"""Who is next."""

import threading
import time

import pytest

from sfumato.errors import Cancelled, InvalidRequest
from sfumato.serve.line import Line


def nothing() -> None:
    pass


def wait_for(line: Line, count: int) -> None:
    deadline = time.monotonic() + 5
    while len(line) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_first_come_first_served() -> None:
    line, order = Line("mini"), []
    told: dict[int, list[int]] = {1: [], 2: []}

    def work(number: int) -> None:
        with line.turn(nothing, told[number].append):
            order.append(number)

    with line.turn(nothing, told[1].append):
        threads = []
        for number in (1, 2):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            wait_for(line, number + 1)
        time.sleep(0.05)
    for thread in threads:
        thread.join(5)
    assert order == [1, 2]
    assert told[1] == [1]
    assert told[2] in ([2], [2, 1])  # the first one may be done before the second one looks
    assert len(line) == 0


def test_two_at_once_where_two_may() -> None:
    line = Line("mini", at_once=2)
    told: list[int] = []
    with line.turn(nothing, told.append), line.turn(nothing, told.append):
        assert len(line) == 2
    assert not told


def test_a_full_line_is_refused_and_has_room_again() -> None:
    line = Line("mini", waiting=0)
    full = pytest.raises(InvalidRequest, match="mini: 0 are waiting already")
    with line.turn(nothing, print), full, line.turn(nothing, print):
        pass
    with line.turn(nothing, print):
        pass


def test_who_leaves_is_not_waited_for() -> None:
    line = Line("mini")
    gone = threading.Event()
    left = threading.Event()

    def stop_if() -> None:
        if gone.is_set():
            raise Cancelled("gone")

    def impatient() -> None:
        with pytest.raises(Cancelled), line.turn(stop_if, lambda ahead: None):
            pass
        left.set()

    with line.turn(nothing, print):
        thread = threading.Thread(target=impatient)
        thread.start()
        wait_for(line, 2)
        gone.set()
        assert left.wait(5)
        assert len(line) == 1
    thread.join(5)


def test_what_goes_wrong_in_a_turn_frees_it() -> None:
    line = Line("mini")
    with pytest.raises(ZeroDivisionError), line.turn(nothing, print):
        raise ZeroDivisionError
    assert len(line) == 0
