"""The secret that the processes of a run share, and how they prove that they know it."""

import contextlib
import hashlib
import hmac
import ipaddress
import os
import secrets
import socket
import time
from pathlib import Path

from ..errors import UserError

VARIABLE = "GMT_TRAIN_SECRET"
_PATIENCE = 5.0  # Seconds in which another process must have written the file that it created.


def find_secret(host: str) -> bytes:
    """The secret: what GMT_TRAIN_SECRET or the file GMT_TRAIN_SECRET_FILE holds.

    Where all processes are on one machine it can be left out: then it is kept in a file that this
    user alone can read.

    Args:
      host: of process 0.

    Raises:
      UserError: if there is none for processes on several machines, or it cannot be read.
    """
    if secret := os.environ.get(VARIABLE):
        return secret.encode()
    if name := os.environ.get(f"{VARIABLE}_FILE"):
        try:
            secret_of_file = Path(name).read_bytes().strip()
        except OSError as error:
            raise UserError(f"{VARIABLE}_FILE: {name}: {error.strerror}") from None
        if not secret_of_file:
            raise UserError(f"{VARIABLE}_FILE: {name} is empty; write a random word into it")
        return secret_of_file
    if is_loopback(host):
        return _of_this_user(Path("~/.cache/gmt-jax/secret").expanduser())
    raise UserError(
        f"processes on several machines need a shared secret: set {VARIABLE} to the same random "
        f"word in each, or {VARIABLE}_FILE to a file that holds it"
    )


def is_loopback(host: str) -> bool:
    """Whether a host's addresses are all reached from this machine alone."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address)).is_loopback for address in found)


def _of_this_user(file: Path) -> bytes:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as new:
                new.write(secrets.token_hex(32).encode())
        until = time.monotonic() + _PATIENCE
        while len(secret := file.read_bytes()) < 64 and time.monotonic() < until:
            time.sleep(0.05)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; set {VARIABLE} to a random word") from None
    if len(secret) < 64:
        raise UserError(f"{file}: is not whole; remove it, or set {VARIABLE} to a random word")
    return secret


def proof(secret: bytes, *parts: str) -> str:
    """What only a process that knows the secret can compute of the parts."""
    return hmac.new(secret, " ".join(parts).encode(), hashlib.sha256).hexdigest()


def is_proof(given: str, secret: bytes, *parts: str) -> bool:
    """Whether `given` is the proof; takes as long either way."""
    return hmac.compare_digest(given.encode(), proof(secret, *parts).encode())
