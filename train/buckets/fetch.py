"""What is at an address as files and folders here: downloaded once, and again when it changes."""

import contextlib
import fnmatch
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from .. import lease
from ..errors import UserError, warn
from ..files import DestinationExistsError, atomic_folder, expand
from ..manifest import NAME as MANIFEST
from .address import is_address, last_name
from .store import Object, Store

_WILD = frozenset("*?[")


def cache_folder() -> Path:
    """Where downloads and the folders of runs at addresses are; it may be deleted between runs."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand(home) / "gmt-jax" / "buckets"


def cache_path(place: str) -> Path:
    """The folder here of a cache, wherever that is."""
    if not is_address(place):
        return expand(place)
    return cache_folder() / "caches" / hashlib.sha256(place.encode()).hexdigest()[:16]


@contextmanager
def shared_cache(place: str) -> Iterator[None]:
    """Brings what is in a cache at an address, and uploads what is new in it at the end.

    Its files never change under their names. What cannot be uploaded is reported and is no error.

    Raises:
      UserError: if the bucket cannot be reached at the beginning.
    """
    if not is_address(place):
        yield
        return
    store, folder = Store(place), cache_path(place)
    objects = store.objects()
    missing = {name: folder / name for name in objects if not (folder / name).exists()}
    store.download(missing, objects)
    yield
    files = {p.relative_to(folder).as_posix(): p for p in _files(folder)}
    try:
        upload_files(store, {name: file for name, file in files.items() if name not in objects})
    except UserError as error:
        warn(str(error))


def fetch(place: str, patterns: Sequence[str] = ("*",)) -> Path:
    """The path of a file or a folder; at an address, that of its copy here.

    Args:
      patterns: the names of files in a folder that are downloaded.

    Raises:
      UserError: if there is nothing, or it cannot be downloaded.
    """
    if not is_address(place):
        return expand(place)
    store = Store(place)
    objects = store.objects()
    if "" in objects:  # An object of this very name.
        return _download(store, {"": objects[""]})
    objects = {
        name: found
        for name, found in objects.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
    if not objects:
        raise UserError(f"{place}: there is nothing at this address; see its spelling")
    return _download(store, objects)


def fetch_files(address: str) -> list[Path]:
    """The copies of what an address, which may be a pattern, names: files, or one folder.

    Raises:
      UserError: as `fetch`.
    """
    if not _WILD & set(address):
        return [fetch(address)]
    scheme, _, path = address.partition("://")
    fixed = path[: min(path.index(c) for c in _WILD & set(path))].rpartition("/")[0]
    store, pattern = Store(f"{scheme}://{fixed}"), path[len(fixed) + 1 :]
    objects = store.objects()
    names = [name for name in objects if name and _matches(name, pattern)]
    if not names:
        raise UserError(f"{address}: no object has such a name; see its spelling")
    folder = _download(store, {name: objects[name] for name in names})
    return [folder / name for name in names]


@contextmanager
def named(path: Path, address: str) -> Iterator[None]:
    """Lets errors name an address in place of the path that stands for it."""
    try:
        yield
    except UserError as error:
        error.args = tuple(str(part).replace(str(path), address) for part in error.args)
        raise


@contextmanager
def destination(place: str | Path) -> Iterator[Path]:
    """Yields a path to write a file or a folder to; at an address, it is uploaded at the end.

    The manifest of a folder is uploaded last. After an error nothing was uploaded.

    Raises:
      UserError: if something is at the address, or it cannot be uploaded.
    """
    if not is_address(place):
        yield expand(place)
        return
    store = Store(str(place))
    if there := list(store.objects()):
        raise DestinationExistsError(
            f"{place} is not empty: it holds {', '.join(filter(None, there[:3])) or 'an object'}; "
            "choose another address with --out, or remove it"
        )
    with scratch("outputs") as folder:
        path = folder / last_name(str(place))
        with named(path, str(place)):
            yield path
        if path.is_dir():
            upload_files(store, {p.relative_to(path).as_posix(): p for p in _files(path)})
        else:
            store.upload({"": path})


@contextmanager
def optional_destination(place: str | Path | None) -> Iterator[Path | None]:
    """`destination`, or None where no place is given."""
    if place is None:
        yield None
    else:
        with destination(place) as path:
            yield path


def upload_files(store: Store, files: Mapping[str, Path]) -> None:
    """Uploads files, manifests last."""
    last = {name for name in files if PurePosixPath(name).name == MANIFEST}
    store.upload({name: file for name, file in files.items() if name not in last})
    store.upload({name: files[name] for name in last})


def _matches(name: str, pattern: str) -> bool:
    if "**" in pattern:
        return fnmatch.fnmatchcase(name, pattern)
    parts, wanted = PurePosixPath(name).parts, PurePosixPath(pattern).parts
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _download(store: Store, objects: dict[str, Object]) -> Path:
    """The folder or file of these objects, which is downloaded if it is not here."""
    text = repr((store.address, objects))
    folder = cache_folder() / "inputs" / hashlib.sha256(text.encode()).hexdigest()[:24]
    path = folder / last_name(store.address)
    if not folder.is_dir():
        try:
            with atomic_folder(folder, replace=False) as new:
                top = new / path.name
                store.download({name: top / name if name else top for name in objects}, objects)
        except DestinationExistsError:  # Another process was faster.
            if not folder.is_dir():
                raise
    return path


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


@contextmanager
def scratch(kind: str) -> Iterator[Path]:
    """Yields a new folder of a kind, for that long; those of processes that were killed go."""
    top = cache_folder() / kind
    top.mkdir(parents=True, exist_ok=True)
    for left in top.iterdir():
        with contextlib.suppress(UserError):  # Its process lives.
            if lease.take(left):
                shutil.rmtree(left, ignore_errors=True)
                lease.release(left)
    new = Path(tempfile.mkdtemp(dir=cache_folder()))
    lease.take(new)
    folder = new.replace(top / new.name)  # Locked before others see it.
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lease.release(new)
