"""Processes find each other; here they are threads, whole processes are in test_processes.py."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from train.distributed.rendezvous import Peers, ProcessSpec, connect_processes
from train.errors import UserError

Connect = Callable[..., list[Peers | str]]


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as held:  # Bound, so that nobody else is given its port.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def connect(port: int) -> Iterator[Connect]:
    """Starts (process_id, num_processes) pairs at once; returns each one's peers or error."""
    opened: list[Peers] = []

    def start(pair: tuple[int, int]) -> Peers | str:
        spec = ProcessSpec("127.0.0.1", port, num_processes=pair[1], process_id=pair[0])
        try:
            peers = connect_processes(spec, 1)
        except UserError as error:
            return str(error)
        opened.append(peers)
        return peers

    with ThreadPoolExecutor() as pool:
        yield lambda *pairs: list(pool.map(start, pairs))
    for peers in opened:
        peers.leave()
    for peers in opened:
        peers._watcher.join(10)  # It ends once all peers have said goodbye.
        assert not peers._watcher.is_alive()
        for peer in peers._sockets.values():
            peer.close()


def test_processes_connect_in_any_order(connect: Connect) -> None:
    assert all(isinstance(peers, Peers) for peers in connect((2, 3), (0, 3), (1, 3)))


def test_every_process_names_the_missing_ones(connect: Connect) -> None:
    assert connect((0, 4), (2, 4)) == ["processes 1, 3 of 4 did not start within 1 s"] * 2


def test_a_missing_process_0_is_named_with_its_address(connect: Connect, port: int) -> None:
    (message,) = connect((1, 2))
    assert message.startswith(f"process 0 did not answer at 127.0.0.1:{port} within 1 s")


def test_an_index_taken_twice_is_refused(connect: Connect) -> None:
    messages = connect((0, 3), (1, 3), (1, 3))
    assert set(messages) == {"--process-id: two processes have number 1"}


def test_different_counts_are_refused(connect: Connect) -> None:
    messages = connect((0, 2), (1, 3))
    assert set(messages) == {"--num-processes: 2 in process 0, 3 in process 1"}


def test_a_port_in_use_is_refused(connect: Connect, port: int) -> None:
    with socket.create_server(("", port)):
        (message,) = connect((0, 2))
    assert message.startswith(f"--coordinator-address: cannot listen on port {port}")


def test_only_this_machine_is_listened_to_where_all_processes_are_on_it(
    connect: Connect, port: int
) -> None:
    with socket.create_server(("127.0.0.2", port)):  # Another address of this machine is free.
        assert all(isinstance(peers, Peers) for peers in connect((0, 2), (1, 2)))


@contextlib.contextmanager
def _strangers(port: int, call: Callable[[socket.socket], object], count: int) -> Iterator[None]:
    """Some that connect again and again while processes do."""
    ended = threading.Event()

    def come() -> None:
        while not ended.is_set():
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port), 5) as peer,
            ):
                call(peer)
            time.sleep(0.01)

    with ThreadPoolExecutor(count) as pool:
        for _ in range(count):
            pool.submit(come)
        try:
            yield
        finally:
            ended.set()


CALLS: dict[str, Callable[[socket.socket], object]] = {
    "another protocol": lambda peer: peer.sendall(b"GET / HTTP/1.1\r\n\r\n"),
    "silent": lambda peer: time.sleep(1),
    "a false process": lambda peer: peer.sendall(
        b"process 1 of 3 " + 32 * b"0" + b" " + 64 * b"0" + b"\n"
    ),
    "an old process": lambda peer: peer.sendall(b"process 99 of 3\n"),
    "endless": lambda peer: peer.sendall(b"x" * 100_000),
    "escape codes": lambda peer: peer.sendall(b"\x1b[2J\x1b]0;owned\x07\n"),
}


@pytest.mark.parametrize("call", CALLS)
def test_strangers_neither_join_nor_end_nor_delay_a_run(
    connect: Connect, port: int, call: str
) -> None:
    with _strangers(port, CALLS[call], 3):
        assert all(isinstance(peers, Peers) for peers in connect((0, 3), (1, 3), (2, 3)))
        assert connect((0, 3), (1, 3))[0][:36] == "process 2 of 3 did not start within "


def test_another_secret_does_not_let_in(
    connect: Connect, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([b"one", b"another"])
    monkeypatch.setattr("train.distributed.rendezvous.find_secret", lambda host: next(found))
    messages = connect((0, 2), (1, 2))
    assert any("is GMT_TRAIN_SECRET the same in all processes?" in str(m) for m in messages)
    assert all(isinstance(message, str) for message in messages)
