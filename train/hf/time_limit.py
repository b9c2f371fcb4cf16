"""Ends a stranger's Python that does not end by itself, such as the loops of a chat template."""

import ctypes
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in.argtypes = [ctypes.c_ulong, ctypes.py_object]

SECONDS = 10  # In which a conversation is rendered.
MEMORY = 4 << 30  # Bytes by which the most memory that the process ever took may grow meanwhile.

_lock = threading.Lock()
# When the call of each thread is to be ended, and at which most memory of the process.
_ends: dict[int, tuple[float, int]] = {}
_watch: threading.Thread | None = None


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in what takes longer, or MemoryError, between two instructions of Python.

    One thread watches all calls, so that a call costs microseconds. Calls are not nested.
    """
    global _watch
    thread = threading.get_ident()
    with _lock:
        _ends[thread] = _clock(thread) + seconds, _most_memory() + MEMORY
        if _watch is None:
            _watch = threading.Thread(target=_end_late_calls, daemon=True)
            _watch.start()
    try:
        yield
    except TimeoutError as error:
        raise error if error.args else TimeoutError(f"it takes {seconds:g} seconds") from None
    except MemoryError as error:
        more = f"it takes {MEMORY / 2**30:g} GiB of memory"
        raise error if error.args else MemoryError(more) from None
    finally:
        with _lock:
            _ends.pop(thread, None)


def _end_late_calls() -> None:
    while True:
        time.sleep(0.1)
        with _lock:
            for thread, (end, most) in list(_ends.items()):
                if (late := _clock(thread) > end) or _most_memory() > most:
                    del _ends[thread]  # Once: after it, other work may be going on there.
                    _raise_in(thread, TimeoutError if late else MemoryError)


def _clock(thread: int) -> float:
    """The seconds that a thread has computed: what waits on a busy machine is not endless."""
    if hasattr(time, "pthread_getcpuclockid"):
        return time.clock_gettime(time.pthread_getcpuclockid(thread))
    return time.monotonic()


def _most_memory() -> int:
    """The most bytes of memory that the process ever took."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
