"""Being asked to stop: by Ctrl-C, or by whoever takes the machine back."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils


@contextmanager
def stop_request() -> Iterator[Callable[[int], bool]]:
    """Tells after a step whether SIGINT or SIGTERM has come; a second one ends the program at once.

    Of several processes it is enough that one is asked: all are told so after the same step.
    """
    asked, several = False, jax.process_count() > 1
    # Of several processes, jax itself listens to SIGTERM and passes it on to the others.
    numbers = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    def stopping(step: int) -> bool:
        return bool(multihost_utils.reached_preemption_sync_point(step)) if several else asked

    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
