"""Sends a run's records to trackers; whatever happens there, the run goes on."""

import contextlib
import io
import json
import queue
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import warn
from .privacy import redact

_OPEN_TIMEOUT, _CLOSE_TIMEOUT = 30.0, 60.0  # Seconds that a run waits for its trackers.
_MAX_WAITING = 100_000  # Messages; a tracker that has more of them does not work.
_MAX_FAILURES = 3  # Failures in a row after which a tracker gets nothing more.

Sample = Mapping[str, Any]


class Tracker(Protocol):
    """What a tracker does with a run; each function may raise anything, and may block.

    Attributes:
      purges: whether opening it for a resumed run removes what that repeats.
    """

    purges: bool

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds a point to the curve of each figure."""

    def log_values(self, step: int, name: str, values: Sequence[float]) -> None:
        """Adds a histogram of values, if the tracker has histograms."""

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Adds a table of completions."""

    def close(self) -> None:
        """Sends what is not sent yet."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is opened with.

    Attributes:
      folder: the run's.
      project: what groups runs.
      id: the same for a resumed run.
      config: the run's config, without secrets.
      facts: the code's revision, versions and devices.
      done: updates done before this process.
      resumed: whether the tracker has something of an earlier process of the run.
    """

    folder: Path
    project: str
    name: str
    id: str
    config: Mapping[str, Any]
    facts: Mapping[str, str]
    done: int = 0
    resumed: bool = False


Opening = Callable[[TrackedRun], Tracker]


class Trackers:
    """The trackers of a run, each in a thread of its own, between `start` and `stop`.

    RUN/trackers.json has the run's id, and how much each tracker was sent: a resumed run sends what
    it repeats once.

    Args:
      openings: what opens each tracker, by its name.
      run: from the number of updates done and the id to what trackers are opened with.
    """

    def __init__(
        self, openings: Mapping[str, Opening], run: Callable[[int, str], TrackedRun]
    ) -> None:
        self._openings, self._run = openings, run
        self._senders: list[_Sender] = []

    def start(self, done: int, file: Path) -> None:
        """Opens the trackers, which a line reports that cannot be opened.

        Args:
          file: where the run's id and what was sent are stored.
        """
        if not self._openings:
            return
        state = _read(file)
        run = self._run(done, state.setdefault("id", secrets.token_hex(4)))
        lock = threading.Lock()
        with _silence():  # Before their threads begin, which may redirect what is printed too.
            self._senders = [
                _Sender(name, opening, run, _Sent(file, state, name, lock))
                for name, opening in self._openings.items()
            ]
            for sender in self._senders:
                sender.opened.wait(_OPEN_TIMEOUT)

    def log(self, record: Mapping[str, Any]) -> None:
        """Sends the figures of a record."""
        figures = {
            name: float(value)
            for name, value in record.items()
            if name != "step" and isinstance(value, int | float)
        }
        if "skipped" in record:
            figures["skipped"] = 1.0
        if figures:
            self._send(record["step"], lambda tracker, step: tracker.log(step, figures))
        for name, by_path in record.get("tensors", {}).items():
            values = [x for part in by_path.values() for x in np.ravel(part).tolist()]
            self._send(record["step"], _logs_values(f"tensors/{name}", values))

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Sends completions."""
        texts = [{name: redact(str(value)) for name, value in s.items()} for s in samples]
        if texts:
            self._send(step, lambda tracker, step: tracker.log_samples(step, texts))

    def _send(self, step: int, call: Callable[[Tracker, int], None]) -> None:
        for sender in self._senders:
            sender.put(step, call)

    def stop(self) -> None:
        """Waits for what is not sent yet, but not for ever."""
        with _silence():
            for sender in self._senders:
                sender.end()
            late = [sender.name for sender in self._senders if not sender.join(_CLOSE_TIMEOUT)]
        for name in late:
            warn(f"track: {name} still sends after {_CLOSE_TIMEOUT:.0f} s and is left alone")
        self._senders = []


class _Sent:
    """How much a tracker was sent: up to which step, and how often at that one."""

    def __init__(self, file: Path, state: dict[str, Any], name: str, lock: threading.Lock) -> None:
        self._file, self._state, self._name, self._lock = file, state, name, lock
        self.resumed = name in state["sent"]
        self._before = tuple(state["sent"].get(name, (-1, 0)))
        self._now = (-1, 0)

    def is_new(self, step: int) -> bool:
        """Counts what is to be sent; whether an earlier process has not sent it."""
        last, times = self._now
        self._now = (step, times + 1 if step == last else 1)
        return self._now > self._before

    def store(self) -> None:
        """Notes what was sent."""
        with self._lock:
            self._state["sent"][self._name] = max(self._now, self._before)
            _write(self._file, self._state)


class _Sender:
    """The thread of a tracker."""

    def __init__(self, name: str, opening: Opening, run: TrackedRun, sent: _Sent) -> None:
        self.name, self.opened = name, threading.Event()
        self._opening, self._sent = opening, sent
        self._run = replace(run, resumed=sent.resumed)
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._is_off = False
        # A daemon: a tracker that hangs does not keep the process.
        self._thread = threading.Thread(target=self._work, name=f"track {name}", daemon=True)
        self._thread.start()

    def put(self, step: int, call: Callable[[Tracker, int], None]) -> None:
        """Has the tracker called later."""
        if not self._is_off and self._queue.qsize() >= _MAX_WAITING:
            self._turn_off(f"has {_MAX_WAITING:,} messages waiting")
        if not self._is_off:
            self._queue.put((step, call))

    def end(self) -> None:
        """Has the tracker closed after that."""
        self._queue.put(None)

    def join(self, timeout: float) -> bool:
        """Whether it is closed in time."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            tracker = self._opening(self._run)
            self._sent.store()
        except BaseException as error:  # Also what would end a process; this one has work to do.
            self._turn_off(f"cannot be opened ({_line(error)})")
            return
        finally:
            self.opened.set()
        failures = 0
        while (item := self._queue.get()) is not None:
            step, call = item
            if not (self._sent.is_new(step) or tracker.purges):
                continue
            try:
                call(tracker, step)
                self._sent.store()
                failures = 0
            except BaseException as error:
                failures += 1
                if failures == _MAX_FAILURES:
                    self._turn_off(f"failed {failures} times in a row ({_line(error)})")
                    break
                if failures == 1:
                    reason = _line(error)
                    warn(f"track: {self.name} failed at step {step} ({reason}) and is tried again")
        with contextlib.suppress(BaseException):
            tracker.close()

    def _turn_off(self, reason: str) -> None:
        self._is_off = True
        warn(f"track: {self.name} {reason}; the run goes on without it")


def _logs_values(name: str, values: Sequence[float]) -> Callable[[Tracker, int], None]:
    return lambda tracker, step: tracker.log_values(step, name, values)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return redact(text if len(text) < 200 else text[:200] + " …")


def _read(file: Path) -> dict[str, Any]:
    """The run's id and what was sent; a file that is not whole counts as none."""
    state: dict[str, Any] = {"sent": {}}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found["sent"], dict) and re.fullmatch(r"[0-9a-f]+", found["id"]):
            state = found
    return state


def _write(file: Path, state: Mapping[str, Any]) -> None:
    # Without it, a resumed run may draw a piece of its curves twice: no reason to stop.
    with contextlib.suppress(OSError):
        new = file.with_name(f".{file.name}.new")
        new.write_text(json.dumps(state) + "\n", encoding="utf-8")
        new.replace(file)


@contextlib.contextmanager
def _silence() -> Any:
    """Keeps what trackers print from the screen, while this thread waits for them."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
