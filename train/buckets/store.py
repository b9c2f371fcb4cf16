"""The objects below an address: listed, read, written and removed, with bounded patience.

An object is replaced as a whole or not at all. Requests that fail are made again, with pauses that
grow, for `PATIENCE` seconds; what then still fails is an error in one line.
"""

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..errors import UserError, warn
from .address import SCHEMES, join

T = TypeVar("T")

PATIENCE = 120.0  # Seconds in which an operation is tried again; its last try may last longer.
_CONNECT, _SILENCE = 10, 60  # Seconds that a connection, and the next bytes, are waited for.
_MOST_PAUSE = 20.0
_THREADS = 8


class BucketError(UserError):
    """A bucket that cannot be reached, or refuses."""


class Object(NamedTuple):
    """An object as a listing shows it: its size, and what changes when it is replaced."""

    size: int
    version: str


class Store:
    """What is below an address; names are relative to it.

    Attributes:
      patience: the seconds in which an operation is tried again; None: `PATIENCE`.
      quiet: whether nothing is printed on what is tried again.

    Raises:
      BucketError: from every function, if the bucket cannot be reached or refuses.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.patience: float | None = None
        self.quiet = False

    def objects(self, below: str = "") -> dict[str, Object]:
        """All objects by name, in order; those below a folder if one is named.

        An address that is itself an object has it under the name "".
        """
        top = join(self.address, below).rstrip("/")
        try:
            found = self._tried(lambda fs: _listed(fs, top), f"{top}: cannot be listed")
        except FileNotFoundError:
            return {}
        start = len(self.address.partition("://")[2])
        objects = {name[start:].lstrip("/"): found[name] for name in sorted(found)}
        for name in objects:
            if ".." in name.split("/"):  # It would be written outside of the folder.
                raise BucketError(f"{self.address}: holds an object named {name}; remove it")
        return objects

    def read(self, name: str) -> bytes | None:
        """The content of an object; None if there is none."""
        address = self._of(name)
        try:
            content: bytes = self._tried(
                lambda fs: fs.cat_file(address), f"{address}: cannot be read"
            )
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes, *, new: bool = False) -> bool:
        """Puts an object whole; returns whether it is there.

        Args:
          new: do not replace an object, where the bucket can tell.
        """
        address, mode = self._of(name), "create" if new else "overwrite"
        try:
            self._tried(
                lambda fs: fs.pipe_file(address, content, mode=mode),
                f"{address}: cannot be written",
            )
        except FileNotFoundError:
            raise _no_bucket(address) from None
        except FileExistsError:
            return self.read(name) == content  # The answer to the first try may have been lost.
        return True

    def download(self, files: Mapping[str, Path], versions: Mapping[str, Object]) -> None:
        """Downloads objects to files, several at once, and compares their sizes."""

        def get(name: str) -> None:
            address, file = self._of(name), files[name]
            file.parent.mkdir(parents=True, exist_ok=True)

            def one(fs: Any) -> None:
                fs.get_file(address, str(file))
                if file.stat().st_size != versions[name].size:
                    raise OSError(f"{file.stat().st_size:,} of {versions[name].size:,} bytes came")

            try:
                self._tried(one, f"{address}: cannot be read")
            except FileNotFoundError:
                raise BucketError(f"{address}: was removed meanwhile; try again") from None

        _in_threads(get, files)

    def upload(self, files: Mapping[str, Path]) -> None:
        """Uploads files, several at once."""

        def put(name: str) -> None:
            address, file = self._of(name), files[name]
            try:
                self._tried(
                    lambda fs: fs.put_file(str(file), address), f"{address}: cannot be written"
                )
            except FileNotFoundError:
                raise _no_bucket(address) from None

        _in_threads(put, files)

    def remove(self, names: Iterable[str]) -> None:
        """Removes objects, several at once; those that are gone are no error."""

        def rm(name: str) -> None:
            address = self._of(name)
            with contextlib.suppress(FileNotFoundError):
                self._tried(lambda fs: fs.rm_file(address), f"{address}: cannot be removed")

        _in_threads(rm, names)

    def copy(self, names: Mapping[str, str]) -> None:
        """Copies objects to other names, within the bucket."""

        def copy(name: str) -> None:
            start, end = self._of(name), self._of(names[name])
            self._tried(lambda fs: fs.cp_file(start, end), f"{end}: cannot be written")

        _in_threads(copy, names)

    def _of(self, name: str) -> str:
        return join(self.address, name) if name else self.address

    def _tried(self, function: Callable[[Any], T], fault: str) -> T:
        """What the function returns, which is tried again when it fails.

        Raises:
          FileNotFoundError, FileExistsError: if there is no such object, or there is one.
        """
        fs = _file_system(self.address.partition("://")[0])
        patience = PATIENCE if self.patience is None else self.patience
        until, pause, told = time.monotonic() + patience, 1.0, self.quiet
        while True:
            try:
                return function(fs)
            except (FileNotFoundError, FileExistsError):
                raise
            except Exception as error:  # What is raised depends on the layer.
                final = _is_refusal(error)
                if final or time.monotonic() + pause > until:
                    raise BucketError(f"{fault} ({_reason(error)}); {_advice(final)}") from error
                if pause > 2 and not told:
                    warn(f"{fault} ({_reason(error)}); trying again")
                    told = True
            time.sleep(pause)
            pause = min(2 * pause, _MOST_PAUSE)


def _no_bucket(address: str) -> BucketError:
    return BucketError(f"{address}: cannot be written (there is no such bucket); see the address")


def _in_threads(function: Callable[[str], None], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(function, names))


def _listed(fs: Any, top: str) -> dict[str, Object]:
    found = fs.find(top, detail=True)
    return {name: _object(info) for name, info in found.items() if info["type"] == "file"}


def _object(info: Mapping[str, Any]) -> Object:
    version = info.get("generation") or info.get("ETag") or info.get("etag")
    return Object(int(info["size"]), str(version))


def _is_refusal(error: Exception) -> bool:
    """Whether another try would be refused too."""
    if isinstance(error, PermissionError | ValueError | TypeError | NotImplementedError):
        return True
    if "Credentials" in type(error).__name__:  # The classes of google.auth and of botocore.
        return True
    code = getattr(error, "code", None) or getattr(error, "status", None)
    return code in (400, 401, 403, 405) or str(error).startswith("Forbidden")


def _advice(final: bool) -> str:
    if final:
        return "see the address and this machine's credentials"
    return "see the bucket and the network, then try again"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__


@functools.cache
def _file_system(scheme: str) -> Any:
    """The connection to all buckets of a scheme.

    Raises:
      BucketError: if its package is not installed.
    """
    package = SCHEMES[scheme]
    # It asks for the kind of every bucket, which takes rights that objects do not need.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # They log tracebacks of tries that are made again.
    for name in (package, "google.auth", "aiobotocore", "botocore"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        import fsspec

        return fsspec.filesystem(
            scheme, use_listings_cache=False, skip_instance_cache=True, **_options(scheme)
        )
    except ImportError:
        raise BucketError(
            f'{scheme}:// needs the package {package}; run: pip install "gmt-jax[buckets]"'
        ) from None
    except Exception as error:  # Credentials that cannot be read, for one.
        raise BucketError(f"{scheme}:// cannot be used ({_reason(error)})") from error


def _options(scheme: str) -> dict[str, Any]:
    if scheme == "s3":
        timeouts = {"connect_timeout": _CONNECT, "read_timeout": _SILENCE}
        return {"config_kwargs": {**timeouts, "retries": {"max_attempts": 2}}}
    import aiohttp

    timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT, sock_read=_SILENCE)
    return {"requests_timeout": timeout, "consistency": "md5"}
