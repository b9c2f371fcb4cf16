"""One writer for a run at an address: an object that its writer renews, whatever clocks say.

A writer puts an object with a name of its own and a count that it raises every few seconds. Who
finds one waits: if the count is raised meanwhile, the writer lives. No two machines' clocks are
compared, and one that jumps changes nothing. Buckets have no locks: a writer that was cut off from
the bucket for longer than that looks at the object before every save, and ends if it is another's.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from ..errors import UserError
from .store import Store

NAME = ".lease.json"
RENEW = 10.0  # Seconds from one renewal to the next.
DEAD = 60.0  # Seconds without one after which a writer counts as dead.
_HURRY = 5.0  # Seconds in which it is given back; if not, it counts as dead after a while.
SETTLE = 3.0  # Seconds in which another that found the same dead writer has put its name, too.


class Lease:
    """The lease of what is below an address; `take` it, and `release` it at the end."""

    def __init__(self, store: Store) -> None:
        self._store, self._beat = store, 0
        self.token = secrets.token_hex(8)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, dead: str | None = None, say: Callable[[str], object] = lambda _: None) -> None:
        """Takes the lease and renews it from now on.

        Args:
          dead: the token of a writer that is known to have ended.
          say: is called with a line if there is something to wait for.

        Raises:
          UserError: if another writer has it, which is named, or the bucket cannot be reached.
        """
        while True:
            found = self._store.read(NAME)
            if found is None:
                if self._store.write(NAME, self._content(), new=True) and self._is_ours():
                    break
                continue
            if _token(found) != dead:
                say(
                    f"{self._store.address}: was written by {_holder(found)}; looking for "
                    f"{DEAD:g} s whether it is still"
                )
                self._watch(found)
            self._store.write(NAME, self._content())
            if _token(found) != dead:
                time.sleep(SETTLE)
            if self._is_ours():
                break
            raise self._refusal(self._store.read(NAME))
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Checks that nobody else has taken the lease.

        Raises:
          UserError: if somebody has.
        """
        found = self._store.read(NAME)
        if found is not None and _token(found) != self.token:
            raise self._refusal(found)

    def release(self) -> None:
        """Gives the lease back, if it is still ours."""
        self._ended.set()
        self._store.patience = _HURRY
        if self._thread is not None:
            self._thread.join(_HURRY)
        if self._is_ours():
            self._store.remove([NAME])

    def _watch(self, found: bytes) -> None:
        """Returns when a writer counts as dead.

        Raises:
          UserError: if it lives.
        """
        until = time.monotonic() + DEAD
        while time.monotonic() < until:
            time.sleep(min(RENEW / 2, DEAD / 4))
            now = self._store.read(NAME)
            if now is None:
                return
            if now != found:
                raise self._refusal(now)

    def _renew(self) -> None:
        self._store.quiet = True  # Saves report a bucket that cannot be reached.
        while not self._ended.wait(RENEW):
            try:
                if not self._is_ours():
                    return  # `check` reports it.
                self._beat += 1
                self._store.write(NAME, self._content())
            except UserError:  # It is tried again.
                continue

    def _is_ours(self) -> bool:
        found = self._store.read(NAME)
        return found is not None and _token(found) == self.token

    def _content(self) -> bytes:
        record = {
            "token": self.token,
            "count": self._beat,
            "holder": f"process {os.getpid()} on {socket.gethostname()}",
        }
        return json.dumps(record).encode()

    def _refusal(self, found: bytes | None) -> UserError:
        holder = _holder(found) if found else "which has just ended"
        return UserError(
            f"{self._store.address} is being written by another run ({holder}); wait until it has "
            "ended, or choose another address with run=ADDRESS"
        )


def _record(content: bytes) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _token(content: bytes) -> str:
    return str(_record(content).get("token"))


def _holder(content: bytes) -> str:
    return str(_record(content).get("holder", "an unknown writer"))[:200]
