"""Several processes that run as one program: started, kept in step and ended together."""

import hashlib
import itertools
import json
import re
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from ..errors import UserError
from .preemption import RESUME_STATUS, StoppedError
from .rendezvous import Peers, ProcessSpec, connect_processes, exit_now
from .secret import is_loopback

# Seconds to wait before an error is reported: it may be the echo of another process's death, which
# the connection to that process reports better.
_GRACE = 3.0
# Seconds in which a process must have done what the others wait for, such as to upload a model.
_WORK_SECONDS = 24 * 3600
_numbers = itertools.count()


@contextmanager
def process_group(spec: ProcessSpec | None, timeout: float) -> Iterator[None]:
    """Makes this process one of several; enter it before jax's first computation.

    An error in one process inside the context ends all of them, each with one line on stderr and
    exit status 2.

    Args:
      spec: which of the processes this one is; None: jax detects it (TPU pods, GKE, Slurm, MPI).
      timeout: seconds to wait for all processes to start.

    Raises:
      UserError: if processes are missing (they are named), or if jax detects nothing.
    """
    peers = None if spec is None else connect_processes(spec, timeout)
    try:
        if spec is None:
            _initialize_detected(timeout)
        else:
            jax.distributed.initialize(
                spec.coordinator_address,
                spec.num_processes,
                spec.process_id,
                initialization_timeout=round(timeout),
                coordinator_bind_address=_bind_address(spec),
            )
        yield
        wait_for_all("the end")  # jax ends those that are five minutes later than the first.
    except BaseException as error:
        _abort(error, peers)
    if peers is not None:
        peers.leave()


def _bind_address(spec: ProcessSpec) -> str | None:
    """Where jax's coordinator listens: on this machine alone, if all processes are on it."""
    return spec.coordinator_address if is_loopback(spec.host) else None


def _initialize_detected(timeout: float) -> None:
    """Lets jax find address, count and index in the environment."""
    late = UserError(
        f"not all processes started within {timeout:g} s; see what each printed, or give "
        "--coordinator-address, --num-processes and --process-id to have the missing ones named"
    )
    # It fires before jax's own timeout, which aborts with a longer and vaguer message.
    timer = threading.Timer(timeout, exit_now, [late])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(initialization_timeout=round(timeout) + 60)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            "--coordinator-address auto: jax cannot detect the processes from the environment "
            f"({reason}); give --coordinator-address HOST:PORT, --num-processes and --process-id"
        ) from None
    finally:
        timer.cancel()


def _abort(error: BaseException, peers: Peers | None) -> NoReturn:
    """Reports the error and ends all processes."""
    status = 2
    if isinstance(error, (KeyboardInterrupt, StoppedError)):
        error, status = UserError(str(error) or "interrupted"), RESUME_STATUS
    if not isinstance(error, UserError):
        time.sleep(_GRACE)
        if peers is not None:
            peers.wait_if_aborting()
        traceback.print_exception(error)
        error = UserError(f"{type(error).__name__}, see above")
    if peers is not None:
        peers.abort(error, f"process {jax.process_index()}: {error}", status)
    exit_now(error, status)


def is_main_process() -> bool:
    """Whether this is process 0, which alone writes records and prints progress."""
    return jax.process_index() == 0


def barrier(name: str, timeout: float = 600) -> None:
    """Waits until every process has reached the barrier of this name; names are used once.

    Raises:
      UserError: naming the processes that did not reach it within `timeout` seconds.
    """
    if jax.process_count() == 1:
        return
    try:
        multihost.get_barrier_sync_fn()(key=name, timeout_ms=round(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        late = re.search(r"timed out task names:\s*((?:\S*\d+\s+)+)", str(error))
        if late is None:  # The connection failed; nobody was late.
            raise
        numbers = ", ".join(sorted(re.findall(r"(\d+)\s", late[1]), key=int))
        raise UserError(
            f"{name}: process {numbers} did not get here within {timeout:g} s"
        ) from None


def wait_for_all(what: str) -> None:
    """Waits until every process has got here, however long the work of one of them takes.

    All call it equally often: barriers' names are used once.
    """
    barrier(f"{what} {next(_numbers)}", _WORK_SECONDS)


@contextmanager
def main_process_first(name: str, timeout: float) -> Iterator[None]:
    """Runs the context's body in process 0, then in all others at once."""
    if not is_main_process():
        barrier(name, timeout)
    yield
    if is_main_process():
        barrier(name, timeout)


def same_number(number: int) -> int:
    """Process 0's number, in all processes; from 0 up to 2³² - 1."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.uint32(number)))


def process_share() -> tuple[int, int]:
    """This process's part of work that all share, and the number of parts."""
    return jax.process_index(), jax.process_count()


def all_true(flag: bool) -> bool:
    """Whether `flag` is true in all processes, which call it together."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.int32(flag)).all())


def check_equal(contents: Mapping[str, str]) -> None:
    """Checks that contents, which have names, are the same in all processes.

    Raises:
      UserError: naming what differs, and the processes in which it is not as in process 0.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(contents, sort_keys=True).encode()
    digest = np.frombuffer(hashlib.blake2b(text, digest_size=8).digest(), np.uint32)
    digests = multihost_utils.process_allgather(digest)
    if (digests == digests[0]).all():
        return
    first, *others = map(json.loads, _gather(text))
    names = sorted({name for other in others for name in _differing(first, other)})
    processes = [str(n) for n, other in enumerate(others, 1) if _differing(first, other)]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    raise UserError(
        f"process {', '.join(processes)} differs from process 0 in {', '.join(names[:5])}{more}"
    )


def _gather(text: bytes) -> list[bytes]:
    """The texts of all processes, which call it together."""
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.frombuffer(text.ljust(sizes.max(), b"\0"), np.uint8)
    texts = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes() for row, size in zip(texts, sizes, strict=True)]


def _differing(a: dict[str, str], b: dict[str, str]) -> set[str]:
    """The names of what is not the same in both."""
    return {name for name in a | b if a.get(name) != b.get(name)}
