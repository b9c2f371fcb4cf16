"""Checks what a run has on disk, and proves on a machine that a killed run goes on exactly."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .buckets.mirror import bring
from .checkpoint_folder import CheckpointFolder
from .errors import UserError
from .fit import fit
from .loop import Callback
from .manifest import DamagedError, check_folder
from .run import Run, read_records

_STEPS, _KILLED_AT = 8, 5


def verify_run(folder: Path) -> Iterator[tuple[bool, str]]:
    """Yields whether each checkpoint, export, adapter and file of records is whole, with a line.

    Raises:
      UserError: if there is no run in the folder.
    """
    run = Run(folder)
    if not (run.config_file.is_file() or run.checkpoints.is_dir()):
        raise UserError(f"{folder} is not a run: it has no config.yaml and no checkpoints")
    checkpoints, resumable = CheckpointFolder(run.checkpoints), True
    faults: dict[int, str | None] = {}
    seen: set[int] = set()  # A mirror goes on listing what the bucket no longer has.
    while not faults and (steps := [step for step in checkpoints.steps if step not in seen]):
        seen.update(steps)
        for step in steps:
            fault = checkpoints.fault(step)
            if fault is not None and checkpoints.is_gone(step):
                continue  # A run that is live has removed it.
            faults[step] = fault
            yield fault is None, f"checkpoint {step}: {fault or 'whole'}"
    try:
        _ = run.facts if run.config_file.is_file() else None
    except UserError as damaged:
        resumable = False
        yield False, str(damaged)
    for folder in (run.export, run.adapter):
        bring(folder)
        if folder.exists():
            try:
                facts = check_folder(folder).facts
                yield True, f"{folder.name}: whole, of step {facts.get('step')}"
            except DamagedError as damage:
                yield False, f"{folder.name}: {damage}"
    for file in (run.metrics_file, run.samples_file, run.tensors_file):
        if file.exists():
            try:
                yield True, f"{file.name}: {sum(1 for _ in read_records(file)):,} records"
            except UserError as damaged:
                resumable = False
                yield False, str(damaged)
    whole = [step for step, fault in faults.items() if fault is None]
    if whole and not resumable:
        yield False, f"cannot be resumed from step {whole[-1]} until its other files are whole"
    else:
        yield bool(whole), f"can be resumed from step {whole[-1]}" if whole else "cannot be resumed"


def train_tiny(folder: Path, kill: bool) -> str:
    """Trains a tiny model in a folder, or goes on with it; returns the digest of its weights.

    Args:
      kill: whether the process is killed after some updates.
    """
    key = jax.random.key(0)
    params = {"a": jax.random.normal(key, (32, 64)), "b": jnp.zeros((64, 32))}

    def loss(params: dict[str, jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean(jnp.square(jnp.tanh(batch["x"] @ params["a"]) @ params["b"] - batch["x"]))

    def batch(step: int) -> dict[str, np.ndarray]:
        return {"x": np.random.default_rng(step).standard_normal((16, 32)).astype(np.float32)}

    def end(params: object, step: int) -> None:
        if kill and step == _KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)

    fitted = fit(
        params,
        loss,
        optax.adamw(1e-2),
        batch,
        _STEPS,
        folder=folder,
        resume=True,
        log_every=1,
        save_every=1,
        callbacks=[Callback(on_save=end)],
    )
    leaves = jax.tree.leaves((fitted.params, fitted.opt_state))
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


def selftest() -> str:
    """Trains a tiny model twice, killed once on the way, and compares every bit.

    Returns:
      A line on what was shown.

    Raises:
      UserError: if this machine does not give the same bits again, or a run does not go on.
    """
    module = f"{__package__}"
    with tempfile.TemporaryDirectory(prefix="gmt-train-selftest-") as top:

        def start(name: str, *, kill: bool = False) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", module, "selftest", "--folder", f"{top}/{name}"]
            command += ["--kill"] if kill else []
            return subprocess.run(command, capture_output=True, text=True, check=False)

        whole, again = start("whole"), start("again")
        killed = start("killed", kill=True)
        resumed = start("killed")
    for process in (whole, again, resumed):
        if process.returncode:
            raise UserError(f"a run failed here: {process.stderr.strip().splitlines()[-1:]}")
    if killed.returncode != -signal.SIGKILL:
        raise UserError(f"a run that was to be killed ended with status {killed.returncode}")
    if whole.stdout != again.stdout:
        raise UserError(
            "two equal runs gave other weights: this machine's operations are not deterministic, "
            "so a resumed run is only as exact as they are (on GPUs, see "
            "XLA_FLAGS=--xla_gpu_deterministic_ops=true)"
        )
    if resumed.stdout != whole.stdout:
        raise UserError("a run that was killed went on to other weights; please report this")
    return (
        f"{_STEPS} updates, killed after {_KILLED_AT} and resumed, give every bit of the "
        f"uninterrupted run, on {jax.devices()[0].device_kind}"
    )
