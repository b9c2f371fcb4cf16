"""Two real processes: each makes its own rows, and together they are the batch."""

import socket
import subprocess
import sys

SCRIPT = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from train.data.batches import Batches
from train.data.encode import Example
from train.data.feed import microbatch_rows, place, prefetched, row_groups
from train.data.packing import best_fit
from train.sharding import make_mesh

lengths = np.random.default_rng(0).integers(1, 17, 45)
examples = [Example(np.arange(n, dtype=np.int32) + 100, np.arange(n) > 0) for n in lengths]
batches = Batches(
    examples, best_fit(lengths, 16), lengths, batch_size=8, max_length=16, seed=0, packing="packed"
)
me = jax.process_index()
for shape, own, group in (
    ((4, 1, 1), 4, (me, 2)), ((2, 1, 2), 4, (me, 2)), ((1, 1, 4), 8, (0, 1))
):
    mesh = make_mesh(*shape)
    assert row_groups(mesh, 4) == group, (shape, row_groups(mesh, 4))
    mine = microbatch_rows(mesh, 2, 4)
    assert len(mine) == own, (shape, mine)
    with prefetched(lambda s: batches.batch(s, mine), lambda a: place(a, mesh, 2), 3, 5) as made:
        for step, batch in zip((3, 4), made, strict=True):
            for key, whole in batches.batch(step).items():
                assert batch[key].shape == (2, 4, 16)
                gathered = process_allgather(batch[key], tiled=True)
                np.testing.assert_array_equal(gathered, whole.reshape(2, 4, 16))
print("equal")
"""


def test_each_process_brings_its_rows() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {"JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, port, str(number)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    done = [process.communicate(timeout=300) for process in processes]
    assert [out.split()[-1:] for out, _ in done] == [["equal"]] * 2, done
