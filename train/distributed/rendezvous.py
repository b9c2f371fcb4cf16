"""Connects all processes before jax starts, and notices when one of them dies.

jax waits for all processes too, but aborts without naming a missing one, and takes minutes to
notice a dead one. So process 0 first listens on the coordinator's port until every other process
has connected and sent its index, with a proof that it knows the run's secret. The connections stay
open: one that closes without a goodbye belongs to a process that died.
"""

import contextlib
import os
import queue
import secrets
import selectors
import socket
import sys
import threading
import time
from typing import NamedTuple, NoReturn

from rich.console import Console

from ..errors import UserError, show
from .door import GREETING, HANDSHAKE_TIMEOUT, Caller, Door, receive, send
from .secret import VARIABLE, find_secret, is_proof, proof

_GOODBYE = "goodbye"
_COMPLETE = "all connected"
# Held while process 0 vouches for what all have written: it needs none of the others for that.
vouching = threading.Lock()
_VOUCHING = 90.0  # Seconds that an exit waits for it; jax ends who has lost a process after 100.
_RETRY_INTERVAL = 0.2  # Seconds between two attempts to reach process 0.


class ProcessSpec(NamedTuple):
    """One of several processes, and the coordinator that all of them connect to.

    Attributes:
      host: the host of process 0.
      port: a free port of that host.
      num_processes: how many processes there are.
      process_id: the index of this one, from 0.
    """

    host: str
    port: int
    num_processes: int
    process_id: int

    @property
    def coordinator_address(self) -> str:
        """`host:port`, as jax takes it."""
        return f"{self.host}:{self.port}"


class Peers:
    """Open connections: from process 0 to all others, from each of the others to process 0."""

    def __init__(self, sockets: dict[int, socket.socket]) -> None:
        self._sockets, self._aborting = sockets, threading.Lock()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def broadcast(self, line: str) -> None:
        """Sends a line to every peer that is still connected."""
        for peer in self._sockets.values():
            with contextlib.suppress(OSError):
                send(peer, line)

    def leave(self) -> None:
        """Says goodbye, so that the end of this process is not taken for its death."""
        self.broadcast(_GOODBYE)

    def abort(self, error: UserError, message: str, status: int = 2) -> NoReturn:
        """Ends this process at once with an error, and its peers with a message."""
        self._aborting.acquire()  # Never released: a second abort must not print as well.
        self.broadcast(message)
        exit_now(error, status)

    def wait_if_aborting(self) -> None:
        """Does not return where another thread is about to end this process."""
        if self._aborting.locked():
            threading.Event().wait()

    def _watch(self) -> None:
        """Aborts when a peer dies or fails; runs until all have said goodbye."""
        with selectors.DefaultSelector() as selector:
            for index, peer in self._sockets.items():
                selector.register(peer, selectors.EVENT_READ, index)
            while selector.get_map():
                for key, _ in selector.select():
                    line = receive(self._sockets[key.data])
                    if line != _GOODBYE:
                        message = line or f"process {key.data} is gone; see what it printed"
                        self.abort(UserError(message), message)
                    selector.unregister(key.fileobj)


def exit_now(error: UserError, status: int = 2) -> NoReturn:
    """Prints an error and ends the process; a regular exit would wait minutes for the others."""
    try:
        Console().show_cursor()  # A progress bar hides it.
        show(error)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # Whether that can be written or not.
        vouching.acquire(timeout=_VOUCHING)
        os._exit(status)


def connect_processes(spec: ProcessSpec, timeout: float) -> Peers:
    """Waits until all processes are connected to process 0.

    Raises:
      UserError: naming the processes that did not connect in time, or whose options do not fit.
    """
    deadline = time.monotonic() + timeout
    secret = find_secret(spec.host)
    if spec.process_id > 0:
        return Peers({0: _connect(spec, secret, deadline, timeout)})
    found: dict[int, Caller] = {}
    door = Door(spec.host, spec.port, spec.num_processes, secret)
    try:
        _accept(spec, door, found, deadline)
    except TimeoutError:
        missing = sorted(set(range(1, spec.num_processes)) - found.keys())
        names = ("process " if len(missing) == 1 else "processes ") + ", ".join(map(str, missing))
        fault = UserError(
            f"{names} of {spec.num_processes} did not start within {timeout:g} s{door.refused}"
        )
    except UserError as error:
        fault = error
    else:
        for caller in found.values():
            caller.send(_COMPLETE)
        return Peers({index: caller.peer for index, caller in found.items()})
    finally:
        door.close()
    for caller in found.values():
        with contextlib.suppress(OSError), caller.peer:
            caller.send(str(fault))
    raise fault


def _accept(spec: ProcessSpec, door: Door, found: dict[int, Caller], deadline: float) -> None:
    """Fills `found` with a connection to each of the other processes."""
    while len(found) < spec.num_processes - 1:
        try:
            caller = door.callers.get(timeout=max(deadline - time.monotonic(), 0.001))
        except queue.Empty:
            raise TimeoutError from None
        duplicate = caller.process_id in found
        found[-1 if duplicate else caller.process_id] = caller
        if caller.num_processes != spec.num_processes:
            raise UserError(
                f"--num-processes: {spec.num_processes} in process 0, {caller.num_processes} in "
                f"process {caller.process_id}"
            )
        if not 0 < caller.process_id < spec.num_processes:
            raise UserError(f"--process-id: a second process has number {caller.process_id}")
        if duplicate:
            raise UserError(f"--process-id: two processes have number {caller.process_id}")


def _connect(spec: ProcessSpec, secret: bytes, deadline: float, timeout: float) -> socket.socket:
    """Returns a connection to process 0, once that has reported all processes connected."""
    while True:
        try:
            peer = socket.create_connection((spec.host, spec.port), timeout=HANDSHAKE_TIMEOUT)
            greeting = receive(peer, 100, time.monotonic() + HANDSHAKE_TIMEOUT)
            if greeting.startswith(f"{GREETING} "):
                break
            peer.close()  # Something else listens there, or too many called at once.
            problem = "what answers there is not process 0 of this run"
        except OSError as error:
            problem = error.strerror or "no answer"
        if time.monotonic() > deadline:
            raise UserError(
                f"process 0 did not answer at {spec.coordinator_address} within {timeout:g} s "
                f"({problem}); see what it printed, and whether the port is open"
            ) from None
        time.sleep(_RETRY_INTERVAL)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    nonce = secrets.token_hex(16)
    hello = f"process {spec.process_id} of {spec.num_processes} {nonce}"
    with contextlib.suppress(OSError):
        send(peer, f"{hello} {proof(secret, greeting.split()[-1], hello)}")
    # Process 0 may have started its wait later than this process.
    until = time.monotonic() + timeout + HANDSHAKE_TIMEOUT
    given, _, line = receive(peer, 10_000, until).partition(" ")
    if not is_proof(given, secret, nonce, line):
        peer.close()
        raise UserError(
            "process 0 ended before all processes were connected, or has another secret: is "
            f"{VARIABLE} the same in all processes?"
        )
    if line != _COMPLETE:
        peer.close()
        raise UserError(line)
    peer.settimeout(None)
    return peer
