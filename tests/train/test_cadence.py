"""When it is time to log, evaluate and save."""

from typing import Any

import pytest

from train.cadence import Cadence, SaveTimer, Window
from train.errors import UserError


def test_zero_is_never() -> None:
    cadence = Cadence(steps=10, log_every=3, evaluate_every=0, save_every=5)
    assert [step for step in range(1, 11) if cadence.logs(step)] == [3, 6, 9]
    assert [step for step in range(1, 11) if cadence.saves(step)] == [5, 10]
    assert not any(map(cadence.evaluates, range(1, 11)))


@pytest.mark.parametrize("number", [-1, 2.5, float("nan"), float("inf")])
def test_what_is_no_number_of_updates_is_refused(number: float) -> None:
    Cadence(5.0, 1, 1, 1)  # type: ignore[arg-type]  # As from a division.
    for name in ("steps", "log_every", "evaluate_every", "save_every", "max_skipped"):
        options: Any = {"steps": 5, "log_every": 1, "evaluate_every": 1, "save_every": 1}
        with pytest.raises(UserError, match=f"^{name} is a number of updates, from 0 on; got"):
            Cadence(**options | {name: number})


def test_a_timer_begins_again_after_a_save() -> None:
    now = 0.0
    timer, never = SaveTimer(2, lambda: now), SaveTimer(0, lambda: now)
    over = []
    for minute in range(6):
        now = 60.0 * minute
        assert not never.is_over()
        if timer.is_over():
            over.append(minute)
            timer.restart()
    assert over == [2, 4]


def test_a_window_measures_speed_and_waiting_from_record_to_record() -> None:
    times = iter([0.0, 1.0, 3.0, 10.0, 20.0, 21.0, 22.0])
    window = Window(lambda: next(times), step=4)
    assert window.take(iter([("batch", 50)])) == "batch"
    figures = window.close(6, 10, "rows", 10.0)
    assert figures == {"rows_per_s": 5.0, "data_wait": 0.2, "seconds_left": 20.0, "mfu": 0.5}
    window.take(iter([("batch", 2)]))
    assert window.close(7, 10, "rows", None) == {
        "rows_per_s": 2 / 12,
        "data_wait": 1 / 12,
        "seconds_left": 36.0,
    }
