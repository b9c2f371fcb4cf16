"""What does not end by itself is ended; other work is not."""

import threading
import time

import pytest

from train.hf.time_limit import time_limit


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_a_loop_is_ended_once() -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError), time_limit(0.1):
        spin(300)
    assert time.monotonic() - begun < 200
    spin(1.5)  # Nothing is raised in what comes after it.


def test_each_thread_has_an_end_of_its_own() -> None:
    ended: list[str] = []

    def run(name: str, limit: float, seconds: float) -> None:
        try:
            with time_limit(limit):
                spin(seconds)
        except TimeoutError:
            ended.append(name)

    threads = [
        threading.Thread(target=run, args=args)
        for args in (("short", 0.1, 300), ("long", 300, 1.5), ("quick", 0.1, 0))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == ["short"]
