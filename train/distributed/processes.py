"""Several processes as one program: started together, waiting for each other, ended together."""

import contextlib
import hashlib
import re
import threading
import time
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from ..errors import UserError
from .rendezvous import Place, Roll, call_roll, end

_GRACE = 3.0  # Seconds in which it becomes known that a fault is another process's end.


@contextlib.contextmanager
def joined(place: Place | None, seconds: float) -> Iterator[None]:
    """This process as one of several, from before jax's first computation on.

    Within the context a fault in one process ends all, with one line each and exit status 2.

    Args:
      place: among them; None: jax finds out from the environment (TPU pods, GKE, Slurm, MPI).
      seconds: how long processes wait for each other to come.

    Raises:
      UserError: naming those that did not come, or if the environment says nothing.
    """
    roll = None if place is None else call_roll(place, seconds)
    try:
        _start(place, seconds)
        yield
    except BaseException as error:
        _end(error, roll)
    if roll is not None:
        roll.leave()


def _start(place: Place | None, seconds: float) -> None:
    if place is not None:
        jax.distributed.initialize(
            f"{place.host}:{place.port}",
            place.processes,
            place.process,
            initialization_timeout=round(seconds),
        )
        return
    late = UserError(
        f"not all processes came within {seconds:g} s; see what each printed, or name "
        "--coordinator, --processes and --process to be told which"
    )
    # Before jax itself aborts, saying less.
    timer = threading.Timer(seconds, end, [late])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(initialization_timeout=round(seconds) + 60)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--coordinator auto: the environment does not say where the processes are ({reason}); "
            "name --coordinator HOST:PORT, --processes and --process"
        ) from None
    finally:
        timer.cancel()


def _end(error: BaseException, roll: Roll | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        error = UserError("interrupted")
    if not isinstance(error, UserError):
        # Where another process died, what is raised here is its echo: the roll says it better.
        time.sleep(_GRACE)
        traceback.print_exception(error)
        error = UserError(f"{type(error).__name__}, see above")
    if roll is None:
        end(error)
    else:
        roll.end(error, f"process {jax.process_index()}: {error}")


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return jax.process_index() == 0


def barrier(what: str, seconds: float = 600) -> None:
    """Waits until every process has come to this point; each point has a name of its own.

    Raises:
      UserError: naming processes that did not come within the time.
    """
    if jax.process_count() == 1:
        return
    try:
        multihost.get_barrier_sync_fn()(key=what, timeout_ms=round(seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        late = re.search(r"timed out task names:\s*((?:\S*\d+\s+)+)", str(error))
        if late is None:  # Not the time, but the connection.
            raise
        named = ", ".join(sorted(re.findall(r"(\d+)\s", late[1]), key=int))
        raise UserError(f"{what}: process {named} did not come within {seconds:g} s") from None


@contextlib.contextmanager
def first_ahead(what: str, seconds: float) -> Iterator[None]:
    """Process 0 does what the context holds before the others do."""
    if not is_first():
        barrier(what, seconds)
    yield
    if is_first():
        barrier(what, seconds)


def check_same(what: str, content: str) -> None:
    """Sees that all processes hold the same.

    Raises:
      UserError: naming those that differ from process 0.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.blake2b(content.encode(), digest_size=8).digest(), np.uint32)
    found = multihost_utils.process_allgather(digest)
    differ = [str(number) for number, row in enumerate(found) if (row != found[0]).any()]
    if differ:
        raise UserError(f"{what} of process {', '.join(differ)} is not that of process 0")
