"""Values that go on along a line."""

import numpy as np

from sfumato.runtime.history import History


def line(step: int) -> np.ndarray:
    return np.float32([0.0, 1.0]) + np.float32(2 * step)


def test_it_goes_on_along_the_line_through_the_last_two() -> None:
    history = History()
    for step in (0, 2, 5):
        history.add(step, line(step) if step else np.float32([100.0, 100.0]))
    np.testing.assert_allclose(history.at(7), line(7))


def test_one_value_is_repeated_and_none_is_none() -> None:
    history = History()
    assert history.at(3) is None
    history.add(3, line(3))
    np.testing.assert_array_equal(history.at(6), line(3))


def test_what_is_not_before_a_step_is_another_picture_s() -> None:
    history = History()
    history.add(0, line(9))
    history.add(5, line(5))
    assert history.at(0) is None
    history.add(0, line(0))
    np.testing.assert_array_equal(history.at(1), line(0))


def test_a_step_that_comes_twice_counts_once() -> None:
    history = History()
    for step, value in ((0, 0), (4, 99), (4, 4)):
        history.add(step, line(value))
    np.testing.assert_allclose(history.at(6), line(6))
