"""One writer for a folder: a lock that ends with its process, however that ends."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError

NAME = ".lock"

_held: dict[Path, int] = {}  # The open lock files of this process.


def take(folder: Path) -> bool:
    """Takes the lease of a folder that exists; returns whether this process did not have it yet.

    Where a file system has no locks, nothing is taken.

    Raises:
      UserError: if another process has it, which is named.
    """
    folder = folder.resolve()
    if folder in _held:
        return False
    file = folder / NAME
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({file}: {error.strerror})") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise UserError(
            f"{folder} is being written by another run ({holder or 'which has just started'}); "
            "wait until it has ended, or choose another folder with run=FOLDER"
        ) from None
    except OSError:  # Some network file systems have no locks.
        os.close(descriptor)
        return False
    with contextlib.suppress(OSError):  # On a full disk; it is for messages alone.
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    _held[folder] = descriptor
    return True


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds the lease of a folder if that exists; gives it back at the end, whoever took it."""
    folder = folder.resolve()  # It may be relative to a working folder that is changed meanwhile.
    mine = folder not in _held
    if folder.is_dir():
        take(folder)
    try:
        yield
    finally:
        if mine:
            release(folder)


def release(folder: Path) -> None:
    """Gives the lease back, if this process has it."""
    descriptor = _held.pop(folder.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)
