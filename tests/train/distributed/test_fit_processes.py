"""Scripts that call `fit` in two processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

Start = Callable[..., Any]

# A loss of one weight, and what the processes of a script are told.
SCRIPT = """
import argparse, time
from pathlib import Path
import jax.numpy as jnp, numpy as np, optax
from train.distributed.processes import process_group
from train.distributed.rendezvous import ProcessSpec
from train.fit import fit
from train.sharding import make_mesh

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--coordinator-address")
parser.add_argument("--num-processes", type=int)
parser.add_argument("--process-id", type=int)
args = parser.parse_args()

def loss(params, rows):
    return jnp.mean(jnp.square(rows["x"] - params["w"][None]))

port = int(args.coordinator_address.rpartition(":")[2])
spec = ProcessSpec("127.0.0.1", port, args.num_processes, args.process_id)
w, options = {"w": np.ones(1, np.float32)}, {"folder": args.folder}
"""

# The batches for the third update differ.
DIFFERENT = f"""{SCRIPT}
def batch(step):
    value = np.nan if args.process_id == 1 and step == 2 else step
    return {{"x": np.full((16, 1), value, np.float32)}}

with process_group(spec, 300):
    options["mesh"] = make_mesh()
    fit(w, loss, optax.sgd(0.1), batch, 5, log_every=1, save_every=1, **options)
"""

# Process 0 takes long to vouch for a checkpoint, and for what it does after the last one.
LATE = f"""{SCRIPT}
from train import manifest

write_manifest, folder = manifest.write_manifest, Path(args.folder)

def slow(*args):
    time.sleep(2)
    write_manifest(*args)

manifest.write_manifest = slow
with process_group(spec, 300):
    options["mesh"] = make_mesh()
    fit(w, loss, optax.sgd(0.1), lambda step: {{"x": np.ones((16, 1), np.float32)}}, 2, **options)
    assert (folder / "checkpoints/2").is_dir()
    if args.process_id == 0:
        time.sleep(2)
        (folder / "late").touch()
assert (folder / "late").exists()
"""


# Process 1 is gone while process 0 vouches for what both have written.
GONE = f"""{SCRIPT}
import os
from train import manifest
from train.loop import Callback

write_manifest, folder = manifest.write_manifest, Path(args.folder)

def slow(*given):
    (folder / "begun").touch()
    time.sleep(6)
    write_manifest(*given)

def end(params, step):
    while args.process_id == 1:
        if (folder / "begun").exists():
            os._exit(9)

manifest.write_manifest = slow
with process_group(spec, 300):
    options |= {{"mesh": make_mesh(), "save_every": 2, "callbacks": [Callback(on_save=end)]}}
    fit(w, loss, optax.sgd(0.1), lambda step: {{"x": np.ones((16, 1), np.float32)}}, 9, **options)
"""


def test_what_was_written_is_saved_though_a_process_is_gone(start: Start, tmp_path: Path) -> None:
    with start(str(tmp_path / "run"), program=("-c", GONE)) as started:
        status, _, errors = started[0].ended()
    message = "gmt-train: error: process 1 is gone; see what it printed\n"
    assert (status, errors) == (2, message)
    assert (tmp_path / "run/checkpoints/2").is_dir()


def test_no_process_ends_before_what_process_0_does_alone(start: Start, tmp_path: Path) -> None:
    with start(str(tmp_path / "run"), program=("-c", LATE)) as started:
        for process in started:
            status, _, errors = process.ended()
            assert (status, errors) == (0, "")


def test_batches_that_differ_are_one_line(start: Start, tmp_path: Path) -> None:
    with start(str(tmp_path / "run"), program=("-c", DIFFERENT)) as started:
        for process in started:
            status, _, errors = process.ended()
            assert (status, errors.count("\n")) == (2, 1), errors
            assert "fit: x of a batch differs between processes; every process has to" in errors
    assert (tmp_path / "run/checkpoints/1").is_dir()
