"""Roll calls between threads; whole processes are in test_distributed.py."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from train.distributed.rendezvous import Place, Roll, call_roll
from train.errors import UserError

Call = Callable[..., list[Roll | str]]


@pytest.fixture
def call() -> Iterator[Call]:
    """Calls the roll of (process, processes) pairs at once: what each is given, or its error."""
    with socket.socket() as held, ThreadPoolExecutor() as pool:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]

        def one(pair: tuple[int, int]) -> Roll | str:
            try:
                return call_roll(Place("127.0.0.1", port, pair[1], pair[0]), 2)
            except UserError as error:
                return str(error)

        rolls: list[Roll] = []

        def all_of(*pairs: tuple[int, int]) -> list[Roll | str]:
            found = list(pool.map(one, pairs))
            rolls.extend(each for each in found if isinstance(each, Roll))
            return found

        all_of.port = port  # type: ignore[attr-defined]
        yield all_of
        for roll in rolls:
            roll.leave()
        for roll in rolls:
            roll._watcher.join(10)  # It is done once all others have said goodbye.
            assert not roll._watcher.is_alive()
            for peer in roll._peers.values():
                peer.close()


def test_all_come_in_any_order(call: Call) -> None:
    found = call((2, 3), (0, 3), (1, 3))
    assert all(isinstance(each, Roll) for each in found)


def test_everyone_is_told_who_is_missing(call: Call) -> None:
    began = time.monotonic()
    said = call((0, 4), (2, 4))
    assert said == ["processes 1, 3 of 4 did not come within 2 s"] * 2
    assert time.monotonic() - began < 10


def test_without_the_first_process_its_address_is_named(call: Call) -> None:
    (said,) = call((1, 2))
    assert said.startswith("process 0 was not at 127.0.0.1:")


def test_two_of_the_same_number_are_told_so(call: Call) -> None:
    assert set(call((0, 3), (1, 3), (1, 3))) == {"--process: there are two of number 1"}


def test_another_count_is_told_to_both(call: Call) -> None:
    assert set(call((0, 2), (1, 3))) == {"--processes: 2 here, 3 at process 1"}


def test_strangers_are_passed_over(call: Call) -> None:
    def stray() -> None:
        while True:
            try:
                with socket.create_connection(("127.0.0.1", call.port)) as peer:
                    peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
                return
            except ConnectionRefusedError:
                time.sleep(0.05)

    with ThreadPoolExecutor() as pool:
        pool.submit(stray)
        found = call((0, 2))
    assert found == ["process 1 of 2 did not come within 2 s"]
