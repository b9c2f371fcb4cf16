"""The one place that replaces files and folders on disk: whole, or not at all.

What is being written has a temporary name beside its destination and is renamed at the end. A
process that is killed meanwhile leaves `.NAME.XXXXXXXX.new`, which may be incomplete, and where a
folder was being replaced perhaps `.NAME.XXXXXXXX.old`, the whole folder that was there before. The
next that writes to the same destination removes them; those of living processes are locked.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import UserError

_CHANCES, _PAUSE = 3, 1.0  # A write that fails is tried so often, after so many seconds.


class DestinationExistsError(UserError):
    """The destination holds something that must not be replaced."""


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to; at the end that file replaces `path`.

    Missing parents are created. After an error `path` is as it was.

    Raises:
      DestinationExistsError: if `path` is a folder or a device, such as /dev/null.
      UserError: if the file cannot be written.
    """
    destination = path.resolve()
    with _user_errors(path):
        _check_is_file(path)
        with _temporary(destination, Path.touch) as (new, _):
            try:
                yield new
                _flush_file(new)
                new.replace(destination)
            finally:
                new.unlink(missing_ok=True)


def check_file(path: Path) -> None:
    """Refuses a file that `atomic_file` could not write, before the work for it is done."""
    with _user_errors(path):
        _check_is_file(path)
        top = next(parent for parent in path.resolve().parents if parent.exists())
    if not (top.is_dir() and os.access(top, os.W_OK)):
        raise UserError(f"{path}: cannot be written ({top} is no folder, or not writable)")


def append(path: Path, text: str) -> None:
    """Adds text to a file, all of it or nothing; a disk that fails is given three chances.

    Raises:
      UserError: if the text cannot be written.
    """
    for left in range(_CHANCES)[::-1]:
        try:
            with path.open("ab", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                try:
                    if file.write(text.encode()) == len(text.encode()):
                        return
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    with contextlib.suppress(OSError):
                        file.truncate(size)
                    raise
        except OSError as error:
            if not left:
                raise UserError(f"{path}: cannot be written ({error.strerror})") from None
            time.sleep(_PAUSE)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool) -> Iterator[Path]:
    """Yields a new empty folder to fill; at the end it is renamed to `path`.

    Missing parents are created. After an error `path` is as it was.

    Args:
      replace: whether a folder at `path` may be replaced. It is renamed aside before the new one
        takes its name, and removed last, so that there is always a whole copy.

    Raises:
      DestinationExistsError: if `path` is not an empty folder and may not be replaced.
      UserError: if the folder cannot be written.
    """
    destination = path.resolve()
    check = _check_is_folder if replace else check_destination
    with _user_errors(path):
        check(path)
        with _temporary(destination, Path.mkdir) as (new, old):
            try:
                yield new
                flush_folder(new)
                _rename(new, destination, old if replace else None)
            except OSError:
                check(path)  # Another process may have been faster.
                raise
            finally:
                shutil.rmtree(new, ignore_errors=True)


def discard_folder(path: Path) -> None:
    """Removes a folder that the program wrote; nobody sees a part of it under its name.

    Raises:
      UserError: if it cannot be removed.
    """
    _, old = _names(path.resolve())
    with _user_errors(path):
        with contextlib.suppress(FileNotFoundError):  # Another process was faster.
            path.rename(old)
        shutil.rmtree(old, ignore_errors=True)


def check_destination(path: Path, replaceable: Collection[str] = ()) -> None:
    """Refuses a destination that holds anything but the names in `replaceable`."""
    if not path.exists():
        return
    _check_is_folder(path)
    others = sorted({entry.name for entry in path.iterdir()} - set(replaceable))
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise DestinationExistsError(
            f"{path} is not empty: it holds {', '.join(others[:3])}{more}; "
            "choose another folder, or remove it"
        )


def expand(path: str | Path) -> Path:
    """A path, with ~ and ~NAME as home folders.

    Raises:
      UserError: if there is no such home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        reason = "this user has no such home folder; name another path, or set HOME"
        raise UserError(f"{path}: {reason}") from None


def shipped(path: Path) -> Path:
    """A file or folder; one that does not exist is looked for among the program's own `configs/`.

    The wheel installs them within the package, and a clone has them beside it.
    """
    if path.parts[:1] != ("configs",) or path.exists():
        return path
    package = Path(__file__).parent
    found = [top / path for top in (package, package.parent) if (top / path).exists()]
    return found[0] if found else path


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file as Hugging Face does: indented, UTF-8, a newline at the end."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_is_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise DestinationExistsError(f"{path} is a file; choose another folder, or remove it")


def _check_is_file(path: Path) -> None:
    if path.exists() and not path.is_file():  # A device would be replaced by a file.
        raise DestinationExistsError(f"{path} is no regular file; choose another path")


def _names(destination: Path) -> tuple[Path, Path]:
    """Temporary names for the new and the old."""
    prefix = f".{destination.name}.{secrets.token_hex(4)}"
    return destination.with_name(f"{prefix}.new"), destination.with_name(f"{prefix}.old")


@contextlib.contextmanager
def _temporary(destination: Path, make: Callable[[Path], None]) -> Iterator[tuple[Path, Path]]:
    """Makes a file or folder with a temporary name, and yields it with a name for the old one.

    What processes that were killed left beside the destination is removed first.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    _clear_left_behind(destination)
    with contextlib.ExitStack() as stack:
        while True:
            new, old = _names(destination)
            make(new)
            # Between these lines another process may take it for what a killed one left.
            with contextlib.suppress(FileNotFoundError):
                if stack.enter_context(_locked(new)) is not False and new.exists():
                    break
        yield new, old


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool | None]:
    """Locks a temporary file or folder; yields whether that was possible, None if nobody can.

    The lock ends with the process, however that ends.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # Some network file systems have no locks.
        return None
    return True


def _clear_left_behind(destination: Path) -> None:
    """Removes what processes that were killed left beside a destination.

    A folder that was renamed aside gets its name back if nothing has taken it.
    """
    pattern = re.compile(rf"\.{re.escape(destination.name)}\.[0-9a-f]{{8}}\.(new|old)")
    names = sorted(os.listdir(destination.parent))
    for name in filter(pattern.fullmatch, names):
        path = destination.parent / name
        new = path.with_suffix(".new")
        with contextlib.suppress(OSError), _locked(new if new.exists() else path) as dead:
            if not dead:
                continue
            if name.endswith(".old") and not destination.exists():
                path.rename(destination)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _rename(new: Path, destination: Path, old: Path | None) -> None:
    """Renames the new folder to the destination; a folder that is there is `old` meanwhile.

    Without `old` an empty folder alone is removed.
    """
    try:
        if destination.exists():
            destination.rename(old) if old else destination.rmdir()
        new.rename(destination)
    except BaseException:
        if old and old.exists() and not destination.exists():
            old.rename(destination)
        raise
    flush_entries(destination.parent)
    if old:
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _user_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{path}: cannot be written ({where}{error.strerror or error})") from error


def flush_folder(folder: Path) -> None:
    """Waits until all files of a folder, and their names, are on the disk."""
    for root, _, files in os.walk(folder):
        for name in files:
            _flush_file(Path(root, name))
        flush_entries(Path(root))


def _flush_file(path: Path) -> None:
    """Waits until the content is on the disk: a rename can reach it before the data do."""
    with path.open("rb+") as file:
        os.fsync(file)


def flush_entries(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, on systems that can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
