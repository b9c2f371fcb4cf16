"""Two processes of four devices each: the run of one process with eight, and its ends."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from train.config import load_config
from train.distributed.preemption import RESUME_STATUS
from train.distributed.processes import barrier, check_equal, same_number
from train.errors import UserError
from train.manifest import read_manifest
from train.run import Run, read_records
from train.sft import sft

Write = Callable[..., Path]
Processes = list[subprocess.Popen[str]]


@contextmanager
def _processes(
    file: Path | str,
    *arguments: str,
    count: int = 2,
    absent: int = 0,
    program: Sequence[str] = ("-m", "train", "sft", "--config"),
) -> Iterator[Processes]:
    """`sft` in several processes on this machine; those left at the end are killed."""
    flags = re.sub(r"device_count=\d+", "device_count=4", os.environ["XLA_FLAGS"])
    with socket.socket() as held:  # Bound, so that nobody else is given its port.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        options = f"--coordinator-address {address} --num-processes {count + absent}"
        command = [sys.executable, *program, str(file), *options.split()]
        started = [
            subprocess.Popen(
                [*command, "--process-id", str(number), *arguments],
                env=os.environ | {"XLA_FLAGS": flags},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(count)
        ]
        try:
            yield started
        finally:
            for process in started:
                process.kill()
                process.communicate()


# Gloo's threads write over each other, so that a line of theirs may be any of its words.
GLOO = re.compile(
    r"(\[Gloo\]|Rank|is|connected|to|peer|ranks\.?|Expected|number|of|:|\d|\s)*", re.ASCII
)


def _ended(process: subprocess.Popen[str], seconds: float = 400) -> tuple[int, str, str]:
    """A process's exit status, output and errors."""
    out, errors = process.communicate(timeout=seconds)
    said = [line for line in out.splitlines() if not GLOO.fullmatch(line)]
    return process.returncode, "\n".join(said), errors


def _alone(file: Path, *overrides: str, resume: bool = False) -> Run:
    config = load_config(file, overrides)
    sft(config, resume=resume, console=Console(quiet=True))
    return Run(Path(config.run))


def _numbers(run: Run, key: str) -> list[float]:
    return [record[key] for record in read_records(run.metrics_file) if key in record]


def _wait_for_records(run: Run, count: int, processes: Processes) -> None:
    for _ in range(6000):
        if len(_numbers(run, "loss")) >= count:
            return
        assert all(process.poll() is None for process in processes), _ended(processes[0])
        time.sleep(0.05)


def _assert_same(found: Run, wanted: Run) -> None:
    """Equal up to the order in which eight devices' sums are added: a few ulps."""
    for key in ("loss", "eval_loss", "grad_norm"):
        np.testing.assert_allclose(_numbers(found, key), _numbers(wanted, key), rtol=2e-6)
    ours, theirs = (load_file(run.export / "model.safetensors") for run in (found, wanted))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-6, err_msg=name)
    assert list(read_records(found.samples_file)) == list(read_records(wanted.samples_file))


@pytest.fixture
def settings(write_config: Write) -> Path:
    return write_config(
        steps=4,
        batch={"size": 16, "num_microbatches": 2},
        evaluation={"every": 4, "max_new_tokens": 2, "prompts": ["3+9="]},
        export_dtype="float32",
    )


def test_two_processes_give_the_run_of_one(settings: Path, tmp_path: Path) -> None:
    one = _alone(settings)
    with _processes(settings, f"run={tmp_path / 'two'}") as started:
        status, said, errors = _ended(started[0])
        assert status == 0, errors
        assert _ended(started[1])[:2] == (0, ""), "process 1 runs to the end and says nothing"
    assert "step 4/4" in said
    two = Run(tmp_path / "two")
    _assert_same(two, one)
    shutil.rmtree(two.checkpoints / "4")
    shutil.rmtree(two.export)
    _assert_same(_alone(settings, f"run={two.folder}", resume=True), one)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    ["optimizer.mask={kind: one_off, mask_ratio: 0.8, compact: true}", "lora={rank: 4, alpha: 8}"],
    ids=["compact", "lora"],
)
def test_two_processes_train_what_is_beside_a_base_as_one_does(
    settings: Path, tmp_path: Path, method: str
) -> None:
    mesh = "mesh={fsdp: 4, tensor: 2}"
    one = _alone(settings, method, mesh)
    with _processes(settings, method, mesh, f"run={tmp_path / 'two'}") as started:
        status, _, errors = _ended(started[0])
        assert status == 0, errors
        assert _ended(started[1])[:2] == (0, "")
    two = Run(tmp_path / "two")
    _assert_same(two, one)
    shutil.rmtree(two.checkpoints / "4")
    shutil.rmtree(two.export)
    _assert_same(_alone(settings, method, mesh, f"run={two.folder}", resume=True), one)


@pytest.mark.slow
def test_two_processes_keep_the_best_and_end_early_as_one_does(
    settings: Path, tmp_path: Path
) -> None:
    more = [
        "steps=6",
        "optimizer.learning_rate=0.3",  # Too large: the loss rises.
        "evaluation.every=1",
        "evaluation.patience=2",
        "checkpoint.keep_best=eval_loss",
        "log_tensors=true",
        "track=tensorboard",
    ]
    one = _alone(settings, *more)
    steps = [record["step"] for record in one.records if "eval_loss" in record]
    assert steps[-1] < 6
    with _processes(settings, *more, f"run={tmp_path / 'two'}") as started:
        status, said, errors = _ended(started[0])
        assert status == 0, errors
        assert _ended(started[1])[:2] == (0, "")
    assert "ended early" in said
    two = Run(tmp_path / "two")
    eval_losses = [_numbers(run, "eval_loss") for run in (one, two)]
    np.testing.assert_allclose(*eval_losses, rtol=1e-4)
    facts = [read_manifest(run.export).facts["step"] for run in (one, two)]
    assert facts[0] == facts[1] < steps[-1]
    assert len(list(read_records(two.tensors_file))) == steps[-1]
    assert len(list((two.folder / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_both_stop_when_one_is_asked_and_end_when_one_dies(settings: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    plain = ["steps=1000", "data.eval_fraction=0", "evaluation.prompts=[]", "export_dtype=null"]
    plain.append("optimizer.mask.kind=none")  # It compiles in half the time.
    with _processes(settings, *plain) as started:
        _wait_for_records(run, 2, started)
        started[1].send_signal(signal.SIGTERM)
        status, said, errors = _ended(started[0])
        assert status == RESUME_STATUS, errors
        assert _ended(started[1])[0] == RESUME_STATUS
    found = re.search(r"stopped and saved at step (\d+); go on with --resume", said)
    assert found, said
    stopped = int(found[1])
    assert stopped == len(_numbers(run, "loss")) < 1000
    assert (run.checkpoints / found[1]).is_dir()
    with _processes(settings, *plain, "--resume") as started:
        _wait_for_records(run, stopped + 2, started)
        started[1].kill()
        status, _, errors = _ended(started[0], seconds=60)
    assert [r["step"] for r in read_records(run.metrics_file) if "loss" in r][stopped] > stopped
    assert status == 2
    assert "gmt-train: error: process 1 is gone" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_process_that_never_comes_is_named(settings: Path, tmp_path: Path) -> None:
    begun = time.monotonic()
    with _processes(settings, "--join-timeout", "5", count=2, absent=2) as started:
        for process in started:
            status, _, errors = _ended(process)
            assert status == 2
            assert errors.endswith("error: processes 2, 3 of 4 did not start within 5 s\n")
    assert time.monotonic() - begun < 120
    assert not (tmp_path / "run").exists()


def test_processes_with_other_content_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax.process_count", lambda: 4)
    gather = "train.distributed.processes.multihost_utils.process_allgather"
    monkeypatch.setattr(gather, lambda digest: np.stack([digest] * 4))
    check_equal("the config", "steps: 3")
    monkeypatch.setattr(gather, lambda digest: np.stack([digest, digest + 1, digest, digest + 2]))
    with pytest.raises(UserError, match=r"^the config differs between process 0 and process 1, 3$"):
        check_equal("the config", "steps: 3")


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


def test_what_was_written_is_saved_though_a_process_is_gone(tmp_path: Path) -> None:
    with _processes(str(tmp_path / "run"), program=("-c", GONE)) as started:
        status, _, errors = _ended(started[0])
    message = "gmt-train: error: process 1 is gone; see what it printed\n"
    assert (status, errors) == (2, message)
    assert (tmp_path / "run/checkpoints/2").is_dir()


def test_no_process_ends_before_what_process_0_does_alone(tmp_path: Path) -> None:
    with _processes(str(tmp_path / "run"), program=("-c", LATE)) as started:
        for process in started:
            status, _, errors = _ended(process)
            assert (status, errors) == (0, "")


def test_batches_that_differ_are_one_line(tmp_path: Path) -> None:
    with _processes(str(tmp_path / "run"), program=("-c", DIFFERENT)) as started:
        for process in started:
            status, _, errors = _ended(process)
            assert (status, errors.count("\n")) == (2, 1), errors
            assert "fit: x of a batch differs between processes; every process has to" in errors
    assert (tmp_path / "run/checkpoints/1").is_dir()
