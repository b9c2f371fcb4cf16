"""The door of a run: process 0 listens, and lets those in that know the secret."""

import contextlib
import queue
import re
import secrets
import socket
import threading
import time
from typing import NamedTuple

from ..errors import UserError
from .secret import VARIABLE, is_loopback, is_proof, proof

GREETING = "gmt-train"
HANDSHAKE_TIMEOUT = 5.0  # Seconds in which a connection must prove that it is one of ours.
_MOST_CALLERS = 64  # Connections that may be proving it at once.


class Caller(NamedTuple):
    """A connection whose other end knows the secret."""

    peer: socket.socket
    process_id: int
    num_processes: int
    nonce: str
    secret: bytes

    def send(self, line: str) -> None:
        """Sends a line that proves to come from process 0."""
        line = " ".join(line.split())
        send(self.peer, f"{proof(self.secret, self.nonce, line)} {line}")


class Door:
    """Listens on the coordinator's port, and lets those in that know the secret.

    Each connection has a thread of its own, a limit of time and of bytes, and there are not more
    than _MOST_CALLERS at once: whoever is silent, slow or a stranger holds nobody up.
    """

    def __init__(self, host: str, port: int, num_processes: int, secret: bytes) -> None:
        self._secret, self._num_refused = secret, 0
        self._slots = threading.Semaphore(_MOST_CALLERS)
        self.callers: queue.Queue[Caller] = queue.Queue()
        self._server = _listen(host, port, num_processes)
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def refused(self) -> str:
        """A remark on connections that were refused, if there were any."""
        if not self._num_refused:
            return ""
        return (
            f"; {self._num_refused} connections did not know the secret: is {VARIABLE} the same "
            "in all processes?"
        )

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # It is closed.
            while True:
                peer, _ = self._server.accept()
                if self._slots.acquire(blocking=False):
                    threading.Thread(target=self._admit, args=(peer,), daemon=True).start()
                else:
                    peer.close()

    def _admit(self, peer: socket.socket) -> None:
        try:
            nonce, until = secrets.token_hex(16), time.monotonic() + HANDSHAKE_TIMEOUT
            peer.settimeout(HANDSHAKE_TIMEOUT)
            send(peer, f"{GREETING} {nonce}")
            line = receive(peer, 300, until)
            hello = re.fullmatch(
                r"process (\d{1,9}) of (\d{1,9}) ([0-9a-f]{32}) ([0-9a-f]{64})", line
            )
            if hello is None or not is_proof(hello[4], self._secret, nonce, line[:-65]):
                self._num_refused += hello is not None
                peer.close()  # Not one of our processes.
                return
            peer.settimeout(None)
            index, count = int(hello[1]), int(hello[2])
            self.callers.put(Caller(peer, index, count, hello[3], self._secret))
        except OSError:
            peer.close()
        finally:
            self._slots.release()

    def close(self) -> None:
        """Listens no longer."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # Wakes the thread that accepts.
        self._server.close()


def _listen(host: str, port: int, backlog: int) -> socket.socket:
    """Listens; on this machine alone where the host is its loopback address."""
    local, both = is_loopback(host), socket.has_dualstack_ipv6()
    try:
        if local:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            return socket.create_server(address[:2], family=family, backlog=backlog)
        return socket.create_server(
            ("", port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
            backlog=backlog,
        )
    except OSError as error:
        raise UserError(
            f"--coordinator-address: cannot listen on port {port} ({error.strerror}); "
            "choose another port"
        ) from None


def send(peer: socket.socket, line: str) -> None:
    peer.sendall(f"{' '.join(line.split())}\n".encode())


def receive(peer: socket.socket, limit: int = 10_000, until: float | None = None) -> str:
    """Returns the peer's next line; empty if it is closed, too long, or not there in time."""
    line = b""
    with contextlib.suppress(OSError):
        while not line.endswith(b"\n"):
            if until is not None:
                peer.settimeout(max(until - time.monotonic(), 0.001))
            byte = peer.recv(1)
            if not byte or len(line) >= limit:
                return ""
            line += byte
        return line.decode(errors="replace").strip()
    return ""
