"""Who is there: every process is called before jax starts, and missed once it is gone.

jax itself waits for all processes, but where one never comes it aborts without saying which, and
that one is gone it notices after minutes. So process 0 first listens on the coordinator's port
until all others have said who they are. These connections stay open: one that ends without a
goodbye is a process that died.
"""

import contextlib
import os
import re
import selectors
import socket
import sys
import threading
import time
from typing import NamedTuple

from rich.console import Console

from ..errors import UserError, show

_BYE = "bye"
_HERE = "all are here"
_PAUSE = 0.2  # Seconds between two attempts to reach process 0.
_PATIENCE = 5.0  # Seconds in which whoever connects must say who it is.


class Place(NamedTuple):
    """Where a process stands among all."""

    host: str  # of process 0
    port: int
    processes: int
    process: int


class Roll:
    """This process's connections: process 0's to all others, the others' to process 0."""

    def __init__(self, peers: dict[int, socket.socket]) -> None:
        self._peers, self._ending = peers, threading.Lock()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def leave(self, reason: str = _BYE) -> None:
        """Says goodbye, or why this process ends before its time."""
        for peer in list(self._peers.values()):
            with contextlib.suppress(OSError):
                _send(peer, reason)

    def end(self, error: UserError, told: str) -> None:
        """Ends this process at once with an error, and the others with what they are told."""
        self._ending.acquire()  # Never released: there is one end.
        self.leave(told)
        end(error)

    def _watch(self) -> None:
        """Ends this process when another one is gone: it would wait for it in vain."""
        with selectors.DefaultSelector() as selector:
            for number, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, number)
            while selector.get_map():
                for key, _ in selector.select():
                    said = _receive(self._peers[key.data])
                    if said != _BYE:
                        gone = f"process {key.data} is gone; see what it printed"
                        self.end(UserError(said or gone), said or gone)
                    selector.unregister(key.fileobj)


def end(error: UserError) -> None:
    """Ends this process at once: the usual way out waits minutes for the others."""
    Console().show_cursor()  # A progress bar hides it.
    show(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def call_roll(place: Place, seconds: float) -> Roll:
    """Waits until all processes are there.

    Raises:
      UserError: naming those that did not come in time, or that are not as they should be.
    """
    deadline = time.monotonic() + seconds
    if place.process > 0:
        return Roll({0: _answer(place, deadline, seconds)})
    peers: dict[int, socket.socket] = {}
    try:
        with _listen(place) as server:
            _gather(place, server, peers, deadline)
    except TimeoutError:
        missing = sorted(set(range(1, place.processes)) - peers.keys())
        named = ("process " if len(missing) == 1 else "processes ") + ", ".join(map(str, missing))
        fault = UserError(f"{named} of {place.processes} did not come within {seconds:g} s")
    except UserError as error:
        fault = error
    else:
        roll = Roll(peers)
        roll.leave(_HERE)
        return roll
    for peer in peers.values():
        with contextlib.suppress(OSError), peer:
            _send(peer, str(fault))
    raise fault


def _gather(
    place: Place, server: socket.socket, peers: dict[int, socket.socket], deadline: float
) -> None:
    """Fills in a connection to each of the others."""
    while len(peers) < place.processes - 1:
        server.settimeout(max(deadline - time.monotonic(), 0.001))
        peer, _ = server.accept()
        peer.settimeout(_PATIENCE)
        hello = re.fullmatch(r"process (\d+) of (\d+)", _receive(peer))
        if hello is None:
            peer.close()  # Whoever it was, it is none of ours.
            continue
        peer.settimeout(None)
        number, count = map(int, hello.groups())
        known = number in peers
        peers[-1 if known else number] = peer
        if count != place.processes:
            raise UserError(f"--processes: {place.processes} here, {count} at process {number}")
        if known:
            raise UserError(f"--process: there are two of number {number}")


def _listen(place: Place) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", place.port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
            backlog=place.processes,
        )
    except OSError as error:
        raise UserError(
            f"--coordinator: cannot listen on port {place.port} ({error.strerror}); take another"
        ) from None


def _answer(place: Place, deadline: float, seconds: float) -> socket.socket:
    """A connection to process 0, over which it has said that all are there."""
    while True:
        try:
            peer = socket.create_connection((place.host, place.port), timeout=_PATIENCE)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"process 0 was not at {place.host}:{place.port} within {seconds:g} s "
                    f"({error.strerror or 'no answer'}); see what it printed, and whether the "
                    "port is open"
                ) from None
            time.sleep(_PAUSE)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    peer.settimeout(seconds + _PATIENCE)  # Process 0 may have begun to wait after this one.
    with contextlib.suppress(OSError):
        _send(peer, f"process {place.process} of {place.processes}")
    said = _receive(peer)
    if said != _HERE:
        peer.close()
        raise UserError(said or "process 0 left before all others had come")
    peer.settimeout(None)
    return peer


def _send(peer: socket.socket, line: str) -> None:
    peer.sendall(f"{' '.join(line.split())}\n".encode())


def _receive(peer: socket.socket) -> str:
    """A line from the other side, or nothing where it is gone."""
    said = b""
    with contextlib.suppress(OSError):
        while not said.endswith(b"\n") and len(said) < 10_000:
            byte = peer.recv(1)
            if not byte:
                return ""
            said += byte
    return said.decode(errors="replace").strip()
