"""One writer an address, and none for ever, whatever clocks say."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from train.buckets import lease
from train.buckets.lease import Lease
from train.buckets.store import Store
from train.errors import UserError


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW", 0.1)
    monkeypatch.setattr(lease, "DEAD", 2.0)
    monkeypatch.setattr(lease, "SETTLE", 0.1)


def test_a_second_writer_is_refused_while_the_first_lives(bucket: Any) -> None:
    first, said = Lease(Store(bucket.address)), []
    first.take()
    with pytest.raises(UserError, match=rf"{bucket.address} is being written by .*process \d+ on"):
        Lease(Store(bucket.address)).take(say=said.append)
    assert "looking for 2 s" in said[0]
    first.check()
    first.release()
    second = Lease(Store(bucket.address))
    second.take(say=pytest.fail)
    second.release()
    assert not Store(bucket.address).objects()


def test_a_dead_writers_lease_is_taken_and_it_finds_out(gs: Any) -> None:
    dead = Lease(Store(gs.address))
    dead.take()
    dead._ended.set()  # It renews nothing more, as if it were killed or cut off.
    dead._thread.join()
    second = Lease(Store(gs.address))
    second.take()
    with pytest.raises(UserError, match="is being written by another run"):
        dead.check()
    dead.release()
    second.check()
    second.release()


def test_a_writer_known_to_be_dead_is_not_waited_for(gs: Any) -> None:
    dead = Lease(Store(gs.address))
    dead.take()
    dead._ended.set()
    dead._thread.join()
    second = Lease(Store(gs.address))
    second.take(dead.token, say=pytest.fail)
    second.release()


@pytest.mark.parametrize("jump", [86400.0, -86400.0])
def test_a_clock_that_jumps_changes_nothing(
    gs: Any, jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Lease(Store(gs.address))
    first.take()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    with pytest.raises(UserError, match="is being written by"):
        Lease(Store(gs.address)).take()
    first.check()
    first.release()


def test_a_lease_that_is_damaged_is_that_of_an_unknown_writer(gs: Any) -> None:
    Store(gs.address).write(lease.NAME, b"\xff[")
    said: list[str] = []
    taken = Lease(Store(gs.address))
    taken.take(say=said.append)
    assert "an unknown writer" in said[0]
    taken.release()


def test_a_bucket_that_fails_for_a_while_does_not_end_the_lease(
    gs: Any, hurry: Callable[[float], None]
) -> None:
    hurry(0)
    first = Lease(Store(gs.address))
    first.take()
    gs.fail(status=403)
    time.sleep(0.5)
    gs.mend()
    before = Store(gs.address).read(lease.NAME)
    until = time.monotonic() + 20
    while Store(gs.address).read(lease.NAME) == before and time.monotonic() < until:
        time.sleep(0.05)
    assert Store(gs.address).read(lease.NAME) != before, "it is renewed again"
    first.release()
