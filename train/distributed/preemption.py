"""Stopping cleanly on SIGINT (Ctrl-C) or SIGTERM (a preempted machine)."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils


@contextmanager
def preemption_guard() -> Iterator[Callable[[int], bool]]:
    """Yields `should_stop(step)`, to be called after every step.

    It returns True once SIGINT or SIGTERM has come, in every process after the same step even if
    only one of them got the signal. A second signal ends the program at once.
    """
    signalled, distributed = False, jax.process_count() > 1
    # With several processes jax itself handles SIGTERM and passes it on to the others.
    signals = (signal.SIGINT,) if distributed else (signal.SIGINT, signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal signalled
        signalled = True
        for handled in signals:
            signal.signal(handled, signal.SIG_DFL)
        if distributed:
            os.kill(os.getpid(), signal.SIGTERM)

    def should_stop(step: int) -> bool:
        if distributed:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return signalled

    previous = {number: signal.signal(number, handle) for number in signals}
    try:
        yield should_stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
