"""When it is time to log, evaluate and save."""

from train.cadence import Cadence, SaveTimer


def test_zero_is_never() -> None:
    cadence = Cadence(steps=10, log_every=3, evaluate_every=0, save_every=5)
    assert [step for step in range(1, 11) if cadence.logs(step)] == [3, 6, 9]
    assert [step for step in range(1, 11) if cadence.saves(step)] == [5, 10]
    assert not any(map(cadence.evaluates, range(1, 11)))


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
