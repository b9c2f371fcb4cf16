"""What a command prints, where that cannot be written: to a full disk, or to nobody."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import UserError, warn


class Printing:
    """What happens when standard output fails.

    Attributes:
      goes_on: whether the command does its work nevertheless, after a warning; if not, it ends.
    """

    goes_on = False
    _has_warned = False

    def fail(self, error: OSError) -> None:
        """Warns once, or ends the command; quietly if who reads it has seen enough (`| head`)."""
        reason = f"standard output cannot be written ({error.strerror})"
        if not self.goes_on:
            if isinstance(error, BrokenPipeError):
                raise SystemExit(128 + signal.SIGPIPE)
            raise UserError(reason)
        if not self._has_warned:
            self._has_warned = True
            warn(f"{reason}; the run goes on")


class _Stream:
    """A text stream whose failures are somebody else's."""

    def __init__(self, stream: Any, fail: Callable[[OSError], object]) -> None:
        self._stream, self._fail = stream, fail

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._fail(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._fail(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def safe_printing() -> Iterator[Printing]:
    """Keeps what is printed from ending a command with a traceback, or from being part of a file.

    Characters that the terminal's encoding does not have are escaped, and nothing is said where
    standard error fails.
    """
    _open_missing()
    printing, streams = Printing(), (sys.stdout, sys.stderr)
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    wrapped: Any = _Stream(streams[0], printing.fail), _Stream(streams[1], lambda _: None)
    sys.stdout, sys.stderr = wrapped
    try:
        yield printing
    finally:
        sys.stdout, sys.stderr = streams
        for stream in streams:
            _empty(stream)


def _open_missing() -> None:
    """Opens what was closed before: the next file to be opened would get what is printed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _empty(stream: Any) -> None:
    """Writes what is left, or drops it: Python would end with a status of its own."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
