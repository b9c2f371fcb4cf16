"""How often the loop does what."""

from collections.abc import Callable
from dataclasses import dataclass

from .distributed.processes import same_number


@dataclass(frozen=True)
class Cadence:
    """How often the loop does what, in updates; 0 for never.

    Attributes:
      save_minutes: minutes after a save when the next update that is logged is saved too; 0: none
        is.
      max_skipped: updates in a row that may be skipped, after which the loop ends.
    """

    steps: int
    log_every: int
    evaluate_every: int
    save_every: int
    save_minutes: float = 0.0
    max_skipped: int = 3

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
