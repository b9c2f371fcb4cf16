"""What processes agree on, and those that differ or are late."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import pytest

from train.distributed.processes import barrier, check_equal, same_number
from train.errors import UserError


def test_what_differs_between_processes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    number, meeting, values = threading.local(), threading.Barrier(4, timeout=60), [None] * 4

    def gather(value: Any) -> Any:
        values[number.own] = value
        meeting.wait()
        gathered = np.stack(values)
        meeting.wait()
        return gathered

    monkeypatch.setattr("jax.process_count", lambda: 4)
    monkeypatch.setattr("train.distributed.processes.multihost_utils.process_allgather", gather)

    def check(own: int, contents: dict[str, str]) -> str:
        number.own = own
        try:
            check_equal(contents)
        except UserError as error:
            return str(error)
        return ""

    same = {"steps": "3", "seed": "0"}
    others = [same, same | {"steps": "4000"}, same, same | {"mesh.fsdp": "2"}]
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(check, range(4), [same] * 4)) == {""}
        (message,) = set(pool.map(check, range(4), others))
    assert message == "process 1, 3 differs from process 0 in mesh.fsdp, steps"


def test_a_number_is_that_of_process_0(monkeypatch: pytest.MonkeyPatch) -> None:
    assert same_number(7) == 7
    monkeypatch.setattr("jax.process_count", lambda: 2)
    broadcast = "train.distributed.processes.multihost_utils.broadcast_one_to_all"
    monkeypatch.setattr(broadcast, lambda number: np.full_like(number, 2**32 - 1))
    assert same_number(7) == 2**32 - 1


def test_processes_that_do_not_reach_a_barrier_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    message = (
        "DEADLINE_EXCEEDED: Barrier timed out. Id: x::0. # of tasks that reached it: 1/3.\n"
        "The first task at the barrier: task:0. Some timed out task names:\n"
        "/job:jax_worker/replica:0/task:2\n/job:jax_worker/replica:0/task:1\n\nRPC: /tensorflow"
    )

    def sync(*, key: str, timeout_ms: int) -> None:
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr("jax.process_count", lambda: 3)
    monkeypatch.setattr("train.distributed.processes.multihost.get_barrier_sync_fn", lambda: sync)
    with pytest.raises(UserError, match=r"^saving: process 1, 2 did not get here within 5 s$"):
        barrier("saving", 5)
