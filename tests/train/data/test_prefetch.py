"""Batches on the devices ahead of time; each process brings its own rows."""

import os
import socket
import subprocess
import sys
import threading
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from train.data.prefetch import local_rows, microbatch_rows, prefetch, row_group, to_devices
from train.errors import UserError
from train.sharding import batch_sharding, make_mesh


def test_values_come_in_order() -> None:
    with closing(prefetch(lambda n: n * n, lambda x: -x, 5)) as values:
        assert list(values) == [0, -1, -4, -9, -16]


def test_it_goes_on_from_a_state() -> None:
    with closing(prefetch(lambda n: n, lambda x: x, 8)) as values:
        assert [next(values), next(values)] == [0, 1]
        state = values.get_state()
    assert state == {"next_index": 2}
    with closing(prefetch(lambda n: n, lambda x: x, 8)) as values:
        values.set_state(state)
        assert list(values) == [2, 3, 4, 5, 6, 7]


def test_values_are_computed_before_they_are_asked_for() -> None:
    computed = [threading.Event() for _ in range(20)]

    def make(n: int) -> int:
        computed[n].set()
        return n

    with closing(prefetch(make, lambda x: x, 20)) as values:
        assert next(values) == 0
        assert computed[3].wait(10), "nobody asked for it"
        assert not computed[19].is_set(), "but not all at once"


def test_an_error_is_raised_where_its_value_is_asked_for() -> None:
    def make(n: int) -> int:
        if n == 2:
            raise UserError("row 2 is bad")
        return n

    with closing(prefetch(make, lambda x: x, 4)) as values:
        assert [next(values), next(values)] == [0, 1]
        with pytest.raises(UserError, match="row 2 is bad"):
            next(values)


def test_closing_early_ends_the_threads() -> None:
    before = threading.active_count()
    with closing(prefetch(lambda n: n, lambda x: x, 1000)) as values:
        next(values)
    assert threading.active_count() <= before + 2  # Idle threads of a pool may stay.


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
@pytest.mark.parametrize("num_microbatches", [1, 3])
def test_rows_are_where_the_step_wants_them(
    shape: tuple[int, int, int], num_microbatches: int
) -> None:
    mesh = make_mesh(*shape)
    rows = np.arange(num_microbatches * 8 * 5).reshape(-1, 5)
    local = microbatch_rows(mesh, num_microbatches, 8)
    assert local.tolist() == list(range(num_microbatches * 8)), "one process has all of them"
    tokens = to_devices({"tokens": rows[local]}, mesh, num_microbatches)["tokens"]
    np.testing.assert_array_equal(tokens, rows.reshape(num_microbatches, 8, 5))
    np.testing.assert_array_equal(to_devices({"x": rows[:8]}, mesh)["x"], rows[:8])


class _Sharding:
    """A sharding over two processes, of which this one holds the first four of eight devices."""

    def __init__(self, sharding: Any) -> None:
        self._spans = sharding.devices_indices_map

    def addressable_devices_indices_map(self, shape: tuple[int, ...]) -> Any:
        return {d: span for d, span in self._spans(shape).items() if d in jax.devices()[:4]}

    def devices_indices_map(self, shape: tuple[int, ...]) -> Any:
        return {
            _Device(int(d not in jax.devices()[:4]), d.id): span
            for d, span in self._spans(shape).items()
        }


class _Device(SimpleNamespace):
    def __init__(self, process_index: int, id: int) -> None:
        super().__init__(process_index=process_index, id=id)

    def __hash__(self) -> int:
        return hash(self.id)


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "train.data.prefetch.batch_sharding", lambda mesh: _Sharding(batch_sharding(mesh))
    )


@pytest.mark.usefixtures("two_processes")
@pytest.mark.parametrize(
    ("shape", "rows", "group"),
    [
        ((8, 1, 1), [0, 1, 2, 3], (0, 2)),
        ((2, 2, 2), [0, 1, 2, 3], (0, 2)),
        ((1, 1, 8), list(range(8)), (0, 1)),
    ],
)
def test_a_process_has_the_rows_of_its_devices(
    shape: tuple[int, int, int], rows: list[int], group: tuple[int, int]
) -> None:
    mesh = make_mesh(*shape)
    assert local_rows(mesh, 8).tolist() == rows
    assert microbatch_rows(mesh, 2, 8).tolist() == [*rows, *(8 + row for row in rows)]
    assert row_group(mesh, 8) == group


SCRIPT = """
import sys
from contextlib import closing
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from train.data.batches import Batches
from train.data.packing import best_fit
from train.data.prefetch import microbatch_rows, prefetch, row_group, to_devices
from train.data.tokenize import Example
from train.sharding import make_mesh

lengths = np.random.default_rng(0).integers(1, 17, 45)
examples = [Example(np.arange(n, dtype=np.int32) + 100, np.arange(n) > 0) for n in lengths]
batches = Batches(
    examples, best_fit(lengths, 16), lengths, batch_size=8, max_length=16, seed=0, packing="packed"
)
process = jax.process_index()
for shape, num_rows, group in (
    ((4, 1, 1), 4, (process, 2)), ((2, 1, 2), 4, (process, 2)), ((1, 1, 4), 8, (0, 1))
):
    mesh = make_mesh(*shape)
    assert row_group(mesh, 4) == group, (shape, row_group(mesh, 4))
    rows = microbatch_rows(mesh, 2, 4)
    assert len(rows) == num_rows, (shape, rows)
    local = prefetch(lambda s: batches.batch(s, rows), lambda a: to_devices(a, mesh, 2), 5)
    with closing(local) as iterator:
        iterator.set_state({"next_index": 3})
        for step, batch in zip((3, 4), iterator, strict=True):
            for name, whole in batches.batch(step).items():
                assert batch[name].shape == (2, 4, 16)
                gathered = process_allgather(batch[name], tiled=True)
                np.testing.assert_array_equal(gathered, whole.reshape(2, 4, 16))
"""


@pytest.mark.slow
def test_each_of_two_processes_brings_its_rows() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, port, str(index)],
            env={"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
