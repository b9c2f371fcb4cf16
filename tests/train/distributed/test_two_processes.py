"""Two processes of four devices each: the run of one process with eight, and its ends."""

import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from train.config import load_config
from train.distributed.preemption import RESUME_STATUS
from train.manifest import read_manifest
from train.run import Run, read_records
from train.sft import sft

Write = Callable[..., Path]
Start = Callable[..., Any]


def _alone(file: Path, *overrides: str, resume: bool = False) -> Run:
    config = load_config(file, overrides)
    sft(config, resume=resume, console=Console(quiet=True))
    return Run(Path(config.run))


def _numbers(run: Run, key: str) -> list[float]:
    return [record[key] for record in read_records(run.metrics_file) if key in record]


def _wait_for_records(run: Run, count: int, processes: list[Any]) -> None:
    for _ in range(6000):
        if len(_numbers(run, "loss")) >= count:
            return
        assert all(process.poll() is None for process in processes), processes[0].ended()
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


def test_two_processes_give_the_run_of_one(start: Start, settings: Path, tmp_path: Path) -> None:
    one = _alone(settings)
    with start(settings, f"run={tmp_path / 'two'}") as started:
        status, said, errors = started[0].ended()
        assert status == 0, errors
        assert started[1].ended()[:2] == (0, ""), "process 1 runs to the end and says nothing"
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
    start: Start, settings: Path, tmp_path: Path, method: str
) -> None:
    mesh = "mesh={fsdp: 4, tensor: 2}"
    one = _alone(settings, method, mesh)
    with start(settings, method, mesh, f"run={tmp_path / 'two'}") as started:
        status, _, errors = started[0].ended()
        assert status == 0, errors
        assert started[1].ended()[:2] == (0, "")
    two = Run(tmp_path / "two")
    _assert_same(two, one)
    shutil.rmtree(two.checkpoints / "4")
    shutil.rmtree(two.export)
    _assert_same(_alone(settings, method, mesh, f"run={two.folder}", resume=True), one)


@pytest.mark.slow
def test_two_processes_keep_the_best_and_end_early_as_one_does(
    start: Start, settings: Path, tmp_path: Path
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
    with start(settings, *more, f"run={tmp_path / 'two'}") as started:
        status, said, errors = started[0].ended()
        assert status == 0, errors
        assert started[1].ended()[:2] == (0, "")
    assert "ended early" in said
    two = Run(tmp_path / "two")
    eval_losses = [_numbers(run, "eval_loss") for run in (one, two)]
    np.testing.assert_allclose(*eval_losses, rtol=1e-4)
    facts = [read_manifest(run.export).facts["step"] for run in (one, two)]
    assert facts[0] == facts[1] < steps[-1]
    assert len(list(read_records(two.tensors_file))) == steps[-1]
    assert len(list((two.folder / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_both_stop_when_one_is_asked_and_end_when_one_dies(
    start: Start, settings: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    plain = ["steps=1000", "data.eval_fraction=0", "evaluation.prompts=[]", "export_dtype=null"]
    plain.append("optimizer.mask.kind=none")  # It compiles in half the time.
    with start(settings, *plain) as started:
        _wait_for_records(run, 2, started)
        started[1].send_signal(signal.SIGTERM)
        status, said, errors = started[0].ended()
        assert status == RESUME_STATUS, errors
        assert started[1].ended()[0] == RESUME_STATUS
    found = re.search(r"stopped and saved at step (\d+); go on with --resume", said)
    assert found, said
    stopped = int(found[1])
    assert stopped == len(_numbers(run, "loss")) < 1000
    assert (run.checkpoints / found[1]).is_dir()
    with start(settings, *plain, "--resume") as started:
        _wait_for_records(run, stopped + 2, started)
        started[1].kill()
        status, _, errors = started[0].ended(seconds=60)
    assert [r["step"] for r in read_records(run.metrics_file) if "loss" in r][stopped] > stopped
    assert status == 2
    assert "gmt-train: error: process 1 is gone" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_process_that_never_comes_is_named(start: Start, settings: Path, tmp_path: Path) -> None:
    begun = time.monotonic()
    with start(settings, "--join-timeout", "5", count=2, absent=2) as started:
        for process in started:
            status, _, errors = process.ended()
            assert status == 2
            assert errors.endswith("error: processes 2, 3 of 4 did not start within 5 s\n")
    assert time.monotonic() - begun < 120
    assert not (tmp_path / "run").exists()
