"""Stopping cleanly on SIGINT (Ctrl-C), SIGTERM (a preempted machine) or SIGHUP (a lost terminal).

The first signal ends a command at once where nothing is lost by that: while it loads, compiles or
exports. The training loop finishes its update and saves. A second signal ends the process at once,
unless it is SIGHUP, which a terminal sends more than once, and nobody to insist.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..errors import UserError, show

RESUME_STATUS = 75  # The exit status of a run that was stopped and can be resumed.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INSISTING = (signal.SIGINT, signal.SIGTERM)  # Those that end the process when they come second.
# Seconds in which Python must have noticed a signal. It does not while it waits for a compiler.
_PATIENCE = 3.0


class StoppedError(BaseException):
    """A signal came where work is ended at once; not an Exception, so that nothing handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class _Watch:
    """Ends the process if Python does not come to handle a signal, unless that is deferred."""

    def __init__(self) -> None:
        self.deferred, self.handled = False, threading.Event()
        self._ours, self._pythons = socket.socketpair()
        self._pythons.setblocking(False)
        self._previous = signal.set_wakeup_fd(self._pythons.fileno(), warn_on_full_buffer=False)
        self._hook, sys.unraisablehook = sys.unraisablehook, self.lost
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        number = self._next(None, _SIGNALS)
        second = number and self._next(_PATIENCE, _INSISTING)
        if number and (second or not (self.handled.is_set() or self.deferred)):
            self._end(number)
        if number and self._next(None, _INSISTING):  # While Python waits for a long call.
            self._end(number)

    def _next(self, seconds: float | None, signals: Iterable[int]) -> int:
        """The next of these signals; 0 after so many seconds, or if the watch is closed."""
        end = None if seconds is None else time.monotonic() + seconds
        with contextlib.suppress(OSError):
            while True:
                self._ours.settimeout(None if end is None else max(end - time.monotonic(), 1e-3))
                number = self._ours.recv(1)
                if not number or number[0] in signals:
                    return number[0] if number else 0
        return 0

    def _end(self, number: int) -> None:
        try:
            show(UserError(str(StoppedError(number))))
        finally:  # Whether that can be written or not.
            os._exit(RESUME_STATUS)

    def lost(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Ends the process where Python drops a StoppedError, as it does in a callback."""
        error = unraisable.exc_value
        if isinstance(error, StoppedError):
            self._end(error.number)
        # Of a save that failed, threads that still write call back; the save itself is reported.
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            self._hook(unraisable)

    def close(self) -> None:
        """Watches no longer."""
        sys.unraisablehook = self._hook
        self.handled.set()
        signal.set_wakeup_fd(self._previous)
        self._pythons.close()
        self._thread.join()
        self._ours.close()


_watch: _Watch | None = None  # That of the command that is running.


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raises StoppedError in the main thread on the first signal; a second one ends the process.

    Where signals are ignored, as under nohup, they stay so.
    """
    global _watch
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if watch.handled.is_set() and number not in _INSISTING:
            return  # The training loop has stopped, and what it saved is perhaps being uploaded.
        watch.handled.set()
        _let_the_second_end(replaced)
        raise StoppedError(number)

    replaced = _handlers(_SIGNALS)
    watch = _watch = _Watch()
    try:
        for number in replaced:
            signal.signal(number, handle)
        yield
    finally:
        _watch = None
        watch.close()
        for number, handler in replaced.items():
            signal.signal(number, handler)


def _handlers(signals: Iterable[int]) -> dict[int, Any]:
    """The handlers of signals that are not ignored, which are to be replaced and put back."""
    handlers = {number: signal.getsignal(number) for number in signals}
    return {number: h for number, h in handlers.items() if h is not signal.SIG_IGN}


def _let_the_second_end(signals: Iterable[int]) -> None:
    """Leaves the next of these signals to the system, which ends the process; but see SIGHUP."""
    for number in signals:
        signal.signal(number, signal.SIG_DFL if number in _INSISTING else signal.SIG_IGN)


class Guard:
    """Whether a loop is to stop.

    Attributes:
      deferring: whether a signal waits for the end of the update; if not, it ends the command.
    """

    def __init__(self, distributed: bool) -> None:
        self.deferring, self.signalled, self._distributed = True, False, distributed

    def __call__(self, step: int) -> bool:
        """Whether to stop after this step: in every process after the same one."""
        if self._distributed:
            from jax.experimental import multihost_utils  # Slow to import: not before a signal.

            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self.signalled

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Signals end the command here: nothing has been done that is not saved."""
        self.defer(False)
        try:
            yield
        finally:
            self.defer(True)

    def defer(self, deferring: bool) -> None:
        """Defers signals to the end of the update, or not."""
        self.deferring = deferring
        if _watch is not None:
            _watch.deferred = deferring


@contextmanager
def preemption_guard() -> Iterator[Guard]:
    """Yields a guard that is to be called after every step.

    It returns True once a signal has come, in every process after the same step even if only one
    of them got it. A second one ends the program at once, but for SIGHUP.
    """
    import jax

    distributed = jax.process_count() > 1
    guard = Guard(distributed)
    # With several processes jax itself handles SIGTERM and passes it on to the others.
    signals = [n for n in _SIGNALS if not (distributed and n == signal.SIGTERM)]
    previous: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        if not guard.deferring and callable(previous[number]):
            previous[number](number, frame)
        if _watch is not None:
            _watch.handled.set()
        guard.signalled = True
        _let_the_second_end(previous)
        if distributed:
            os.kill(os.getpid(), signal.SIGTERM)

    if threading.current_thread() is threading.main_thread():
        previous = _handlers(signals)
        for number in previous:
            signal.signal(number, handle)
    guard.defer(True)
    try:
        yield guard
    finally:
        guard.defer(False)
        for number, handler in previous.items():
            signal.signal(number, handler)
