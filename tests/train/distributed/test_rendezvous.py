"""Processes find each other; here they are threads, whole processes are in test_processes.py."""

import socket
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


def test_strangers_are_passed_over(connect: Connect, port: int) -> None:
    def call_from_outside() -> None:
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port)) as peer:
                    peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
                return
            except ConnectionRefusedError:
                time.sleep(0.05)

    with ThreadPoolExecutor() as pool:
        pool.submit(call_from_outside)
        assert connect((0, 2)) == ["process 1 of 2 did not start within 1 s"]
