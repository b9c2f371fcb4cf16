"""How often the loop does what, and how fast it is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .distributed.processes import same_number
from .errors import UserError


@dataclass(frozen=True)
class Cadence:
    """How often the loop does what, in updates; 0 for never.

    Attributes:
      save_minutes: minutes after a save when the next update that is logged is saved too; 0: none
        is.
      max_skipped: updates in a row that may be skipped, after which the loop ends.

    Raises:
      UserError: if a number of updates is none.
    """

    steps: int
    log_every: int
    evaluate_every: int
    save_every: int
    save_minutes: float = 0.0
    max_skipped: int = 3

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "evaluate_every", "save_every", "max_skipped"):
            number = getattr(self, name)
            if not (number >= 0 and number % 1 == 0):  # The loop would pass the end of 2.5 steps.
                raise UserError(f"{name} is a number of updates, from 0 on; got {number!r}")

    def logs(self, step: int) -> bool:
        return _is_time(step, self.log_every)

    def evaluates(self, step: int) -> bool:
        return _is_time(step, self.evaluate_every)

    def saves(self, step: int) -> bool:
        return _is_time(step, self.save_every)


def _is_time(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class SaveTimer:
    """Whether so many minutes have passed since the last save, by process 0's clock."""

    def __init__(self, minutes: float, clock: Callable[[], float]) -> None:
        self._seconds, self._clock = 60 * minutes, clock
        self.restart()

    def restart(self) -> None:
        self._since = self._clock()

    def is_over(self) -> bool:
        """The answer is the same in all processes, which ask together."""
        if not self._seconds:
            return False
        return bool(same_number(int(self._clock() - self._since >= self._seconds)))


class Window:
    """The updates since the last record: how fast they were, and how long the rest will take."""

    def __init__(self, clock: Callable[[], float], step: int) -> None:
        self._clock, self._since, self._step = clock, clock(), step
        self._waited, self._count = 0.0, 0

    def take(self, batches: Iterator[tuple[Any, int]]) -> Any:
        """The next batch, counted; measures the time that the loop waits for it."""
        since = self._clock()
        batch, count = next(batches)
        self._waited += self._clock() - since
        self._count += count
        return batch

    def close(self, step: int, steps: int, unit: str, peak_per_s: float | None) -> dict[str, float]:
        """The figures of the updates up to this step; the next window begins."""
        now = self._clock()
        seconds = now - self._since
        rate = self._count / seconds
        figures = {
            f"{unit}_per_s": rate,
            "data_wait": self._waited / seconds,
            "seconds_left": seconds / (step - self._step) * (steps - step),
        }
        if peak_per_s:
            figures["mfu"] = rate / peak_per_s
        self._since, self._step, self._waited, self._count = now, step, 0.0, 0
        return figures
