"""Ends a stranger's Python that does not end by itself, such as the loops of a chat template."""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in.argtypes = [ctypes.c_ulong, ctypes.py_object]

_lock = threading.Lock()
_ends: dict[int, float] = {}  # When the call of each thread is to be ended.
_watch: threading.Thread | None = None


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in what takes longer, between two instructions of Python.

    One thread watches all calls, so that a call costs microseconds. Calls are not nested.
    """
    global _watch
    thread = threading.get_ident()
    with _lock:
        _ends[thread] = time.monotonic() + seconds
        if _watch is None:
            _watch = threading.Thread(target=_end_late_calls, daemon=True)
            _watch.start()
    try:
        yield
    finally:
        with _lock:
            _ends.pop(thread, None)


def _end_late_calls() -> None:
    while True:
        time.sleep(0.5)
        with _lock:
            for thread, end in list(_ends.items()):
                if time.monotonic() > end:
                    del _ends[thread]  # Once: after it, other work may be going on there.
                    _raise_in(thread, TimeoutError)
