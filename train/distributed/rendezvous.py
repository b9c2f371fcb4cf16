"""Connects all processes before jax starts, and notices when one of them dies.

jax waits for all processes too, but aborts without naming a missing one, and takes minutes to
notice a dead one. So process 0 first listens on the coordinator's port until every other process
has connected and sent its index. The connections stay open: one that closes without a goodbye
belongs to a process that died.
"""

import contextlib
import os
import re
import selectors
import socket
import sys
import threading
import time
from typing import NamedTuple, NoReturn

from rich.console import Console

from ..errors import UserError, show

_GOODBYE = "goodbye"
_COMPLETE = "all connected"
_RETRY_INTERVAL = 0.2  # Seconds between two attempts to reach process 0.
_HANDSHAKE_TIMEOUT = 5.0  # Seconds in which a connection must send its first line.


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
                _send(peer, line)

    def leave(self) -> None:
        """Says goodbye, so that the end of this process is not taken for its death."""
        self.broadcast(_GOODBYE)

    def abort(self, error: UserError, message: str) -> NoReturn:
        """Ends this process at once with an error, and its peers with a message."""
        self._aborting.acquire()  # Never released: a second abort must not print as well.
        self.broadcast(message)
        exit_now(error)

    def _watch(self) -> None:
        """Aborts when a peer dies or fails; runs until all have said goodbye."""
        with selectors.DefaultSelector() as selector:
            for index, peer in self._sockets.items():
                selector.register(peer, selectors.EVENT_READ, index)
            while selector.get_map():
                for key, _ in selector.select():
                    line = _receive(self._sockets[key.data])
                    if line != _GOODBYE:
                        message = line or f"process {key.data} is gone; see what it printed"
                        self.abort(UserError(message), message)
                    selector.unregister(key.fileobj)


def exit_now(error: UserError) -> NoReturn:
    """Prints an error and ends the process; a regular exit would wait minutes for the others."""
    Console().show_cursor()  # A progress bar hides it.
    show(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def connect_processes(spec: ProcessSpec, timeout: float) -> Peers:
    """Waits until all processes are connected to process 0.

    Raises:
      UserError: naming the processes that did not connect in time, or whose options do not fit.
    """
    deadline = time.monotonic() + timeout
    if spec.process_id > 0:
        return Peers({0: _connect(spec, deadline, timeout)})
    sockets: dict[int, socket.socket] = {}
    try:
        with _listen(spec) as server:
            _accept(spec, server, sockets, deadline)
    except TimeoutError:
        missing = sorted(set(range(1, spec.num_processes)) - sockets.keys())
        names = ("process " if len(missing) == 1 else "processes ") + ", ".join(map(str, missing))
        fault = UserError(f"{names} of {spec.num_processes} did not start within {timeout:g} s")
    except UserError as error:
        fault = error
    else:
        peers = Peers(sockets)
        peers.broadcast(_COMPLETE)
        return peers
    for peer in sockets.values():
        with contextlib.suppress(OSError), peer:
            _send(peer, str(fault))
    raise fault


def _accept(
    spec: ProcessSpec, server: socket.socket, sockets: dict[int, socket.socket], deadline: float
) -> None:
    """Fills `sockets` with a connection to each of the other processes."""
    while len(sockets) < spec.num_processes - 1:
        server.settimeout(max(deadline - time.monotonic(), 0.001))
        peer, _ = server.accept()
        peer.settimeout(_HANDSHAKE_TIMEOUT)
        hello = re.fullmatch(r"process (\d+) of (\d+)", _receive(peer))
        if hello is None:
            peer.close()  # Not one of our processes.
            continue
        peer.settimeout(None)
        index, count = map(int, hello.groups())
        duplicate = index in sockets
        sockets[-1 if duplicate else index] = peer
        if count != spec.num_processes:
            raise UserError(
                f"--num-processes: {spec.num_processes} in process 0, {count} in process {index}"
            )
        if duplicate:
            raise UserError(f"--process-id: two processes have number {index}")


def _listen(spec: ProcessSpec) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", spec.port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
            backlog=spec.num_processes,
        )
    except OSError as error:
        raise UserError(
            f"--coordinator-address: cannot listen on port {spec.port} ({error.strerror}); "
            "choose another port"
        ) from None


def _connect(spec: ProcessSpec, deadline: float, timeout: float) -> socket.socket:
    """Returns a connection to process 0, once that has reported all processes connected."""
    while True:
        try:
            peer = socket.create_connection((spec.host, spec.port), timeout=_HANDSHAKE_TIMEOUT)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"process 0 did not answer at {spec.coordinator_address} within {timeout:g} s "
                    f"({error.strerror or 'no answer'}); see what it printed, and whether the "
                    "port is open"
                ) from None
            time.sleep(_RETRY_INTERVAL)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Process 0 may have started its wait later than this process.
    peer.settimeout(timeout + _HANDSHAKE_TIMEOUT)
    with contextlib.suppress(OSError):
        _send(peer, f"process {spec.process_id} of {spec.num_processes}")
    line = _receive(peer)
    if line != _COMPLETE:
        peer.close()
        raise UserError(line or "process 0 ended before all processes were connected")
    peer.settimeout(None)
    return peer


def _send(peer: socket.socket, line: str) -> None:
    peer.sendall(f"{' '.join(line.split())}\n".encode())


def _receive(peer: socket.socket) -> str:
    """Returns the peer's next line, empty if the connection is closed."""
    line = b""
    with contextlib.suppress(OSError):
        while not line.endswith(b"\n") and len(line) < 10_000:
            byte = peer.recv(1)
            if not byte:
                return ""
            line += byte
    return line.decode(errors="replace").strip()
