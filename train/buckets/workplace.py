"""The folder in which a command reads or writes a run, wherever that is."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from .. import lease as local_lease
from ..distributed.processes import all_true, barrier, is_main_process, same_number
from ..errors import UserError, warn
from ..files import expand
from .address import is_address, last_name
from .fetch import cache_folder, named, scratch
from .lease import Lease
from .mirror import Mirror, forget, keep
from .store import Store

CONFIG = "config.yaml"  # By which a run is known.
_TOKEN = "writer"  # Beside the folder: the lease's token of its last writer.


@contextmanager
def writing(place: str) -> Iterator[Path]:
    """Yields the folder of a run that is to be written; all processes call it together.

    At an address it is a folder here, the only one of this machine for that address. It is filled
    with what is in the bucket, and what changed is uploaded at the end.

    Raises:
      UserError: if another process writes there, or the bucket cannot be reached.
    """
    if not is_address(place):
        yield expand(place)
        return
    address = place.rstrip("/")
    top = cache_folder() / "runs" / hashlib.sha256(address.encode()).hexdigest()[:16]
    mirror = Mirror(top / last_name(address), address)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_named(mirror))
        if is_main_process():
            stack.enter_context(_leased(mirror, top))
        number = same_number(int(mirror.token or "0", 16) % 2**32)
        if not all_true(is_main_process() or _read_token(top) % 2**32 == number):
            mirror = _alone(mirror, top)
            stack.enter_context(_named(mirror))
        barrier(f"opening {address}")
        try:
            yield mirror.folder
        except UserError:
            if is_main_process():  # The records of what went wrong.
                mirror.hurry()
                with contextlib.suppress(UserError):
                    mirror.push()
            raise
        if is_main_process():
            mirror.push()


def _alone(mirror: Mirror, top: Path) -> Mirror:
    """This process's own mirror, where not all processes see that of process 0.

    Raises:
      UserError: if orbax cannot write into such a bucket.
    """
    if not mirror.address.startswith("gs://"):
        raise UserError(
            f"{mirror.address}: process 0 is on another machine; processes on several machines "
            "need a bucket at gs://, or XDG_CACHE_HOME to name a folder that they share"
        )
    if not is_main_process():
        folder = top / f"process-{jax.process_index()}" / mirror.folder.name
        shutil.rmtree(folder, ignore_errors=True)
        mirror = Mirror(folder, mirror.address)
        mirror.pull()
    mirror.apart = True
    return mirror


@contextmanager
def reading(place: str | Path) -> Iterator[str]:
    """Yields the folder of a run that is to be read, or anything else as it is.

    A run at an address is a folder here for that long. What a command adds to it is uploaded.

    Raises:
      UserError: if the bucket cannot be reached.
    """
    if not is_address(place):
        yield os.path.expanduser(place)
        return
    store = Store(str(place))  # What `fit` writes has checkpoints alone.
    if store.read(CONFIG) is None and not store.objects("checkpoints"):
        yield str(place)
        return
    with scratch("readers") as top:
        mirror = Mirror(top / last_name(str(place)), str(place))
        with _named(mirror):
            mirror.pull()
            yield str(mirror.folder)
            mirror.push()


@contextmanager
def reading_run(place: str | Path) -> Iterator[Path]:
    """`reading` of what has to be a run.

    Raises:
      UserError: if there is none at an address, or the bucket cannot be reached.
    """
    with reading(place) as found:
        if is_address(found):
            raise UserError(f"{place} is not a run: it has no {CONFIG}")
        yield Path(found)


@contextmanager
def _named(mirror: Mirror) -> Iterator[None]:
    """Lets modules find the mirror, and messages name the address in place of the folder."""
    keep(mirror)
    try:
        with named(mirror.folder, mirror.address):
            yield
    finally:
        forget(mirror)


@contextmanager
def _leased(mirror: Mirror, top: Path) -> Iterator[None]:
    """Holds both leases: that of the folder here, and that in the bucket; fills the folder."""
    top.mkdir(parents=True, exist_ok=True)
    try:
        mine = local_lease.take(top)
    except UserError as error:
        raise UserError(str(error).replace(str(top), mirror.address)) from None
    lease = Lease(Store(mirror.address))
    try:
        # We hold the lock of the last writer here, so that it has ended.
        dead = (top / _TOKEN).read_text() if (top / _TOKEN).is_file() else None
        lease.take(dead, warn)
        (top / _TOKEN).write_text(lease.token)
        mirror.token, mirror.check = lease.token, lease.check
        shutil.rmtree(mirror.folder, ignore_errors=True)
        mirror.pull()
        try:
            yield
        finally:
            with contextlib.suppress(UserError):  # It counts as dead after a while.
                lease.release()
    finally:
        if mine:
            local_lease.release(top)


def _read_token(top: Path) -> int:
    try:
        return int((top / _TOKEN).read_text(), 16)
    except (OSError, ValueError):
        return -1
