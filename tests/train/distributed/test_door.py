"""Lines over a socket have bounds; test_rendezvous.py has strangers at the door."""

import socket
import time

import pytest

from train.distributed.door import receive, send


@pytest.mark.parametrize("sent", [b"", b"half a line", b"x" * 200 + b"\n"])
def test_a_line_that_does_not_come_or_is_too_long_is_empty(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(sent)
        assert receive(ours, 100, time.monotonic() + 0.2) == ""


def test_a_line_is_one_line() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(theirs, "two\nlines")
        assert receive(ours) == "two lines"
