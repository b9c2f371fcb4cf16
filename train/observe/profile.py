"""A trace of some updates by jax's profiler, for the viewers of TensorBoard and XProf."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from ..errors import warn


class Profile:
    """Traces updates `start` + 1 to `start` + `num_updates` of a run.

    Args:
      folder: where traces are written, for `xprof --logdir`.
      start: the number of updates done before the trace; None: there is none.
      num_updates: how many are traced.
      show: is called with a line when the trace is written.
    """

    def __init__(
        self, folder: Path, start: int | None, num_updates: int, show: Callable[[str], object]
    ) -> None:
        self._folder, self._start, self._show = folder, start, show
        self._end = None if start is None else start + num_updates
        self._is_on = False

    def before_update(self, params: Any, done: int) -> None:
        """Begins or ends the trace if it is time."""
        if done == self._start:
            jax.block_until_ready(params)  # What ran before is no part of it.
            self._is_on = self._try(lambda: jax.profiler.start_trace(str(self._folder)))
        elif done == self._end:
            jax.block_until_ready(params)
            self.stop()

    def stop(self) -> None:
        """Ends the trace if there is one."""
        if self._is_on and self._try(jax.profiler.stop_trace):
            self._show(
                f"profile: updates from {self._start} on are traced in {self._folder}; look at "
                f"them with xprof --logdir {self._folder}"
            )
        self._is_on = False

    @staticmethod
    def _try(function: Callable[[], object]) -> bool:
        """Whether a call succeeds; a run goes on without a trace."""
        try:
            function()
        except Exception as error:  # Of the profiler, or of a disk that is full.
            warn(f"profile: {' '.join(str(error).split())}; the run goes on without a trace")
            return False
        return True
