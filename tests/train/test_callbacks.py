"""Whole runs that keep their best weights, end early, and go on."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train.config import load_config
from train.manifest import read_manifest
from train.restore import export_run
from train.run import Run
from train.sft import sft

pytestmark = pytest.mark.usefixtures("two_devices")

Write = Callable[..., Path]
LOSSES = [0.1, 3.0, 1.0, 2.0, 2.0, 2.0, 0.5]
BEST = {"every": 6, "keep": 1, "keep_best": "eval_loss"}


def _train(file: Path, *overrides: str, resume: bool = False) -> Run:
    return sft(load_config(file, overrides), resume=resume, console=Console(quiet=True))


def _weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


COMPACT = {"mask": {"kind": "one_off", "mask_ratio": 0.9, "compact": True}}


@pytest.mark.parametrize(
    "optimizer", [{}, pytest.param(COMPACT, marks=pytest.mark.slow)], ids=["whole", "compact"]
)
def test_the_best_weights_are_kept_and_exported_and_a_run_ends_early(
    write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: dict[str, Any]
) -> None:
    def evaluate(*_: Any) -> Callable[[Any, int], dict[str, float]]:
        return lambda params, step: {"eval_loss": LOSSES[step]}

    monkeypatch.setattr("train.callbacks.make_evaluate", evaluate)
    evaluation = {"every": 1, "patience": 2, "prompts": ["3+9="]}
    file = write_config(
        evaluation=evaluation,
        checkpoint=BEST,
        export_dtype="float32",
        optimizer=optimizer,
        track="tensorboard",
    )
    run = _train(file)
    assert [r["step"] for r in run.records if "eval_loss" in r] == [0, 1, 2, 3, 4]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["2", "4"]
    assert [sample["step"] for sample in run.samples] == [0, 4]
    assert read_manifest(run.export).facts["step"] == 2
    exported = _weights(run.export)
    shutil.move(run.checkpoints / "4", tmp_path / "4")
    newest = export_run(run.folder, tmp_path / "newest", "float32")
    for name, weights in _weights(newest).items():
        np.testing.assert_array_equal(weights, exported[name])
    shutil.move(tmp_path / "4", run.checkpoints / "4")
    assert "| 2 | 1.0000 |" in (run.export / "README.md").read_text()

    records = run.metrics_file.read_text()
    monkeypatch.setattr("train.sft._train", None)  # It is finished: nothing is trained again.
    _train(file, resume=True)
    assert run.metrics_file.read_text() == records
    monkeypatch.undo()

    monkeypatch.setattr("train.callbacks.make_evaluate", evaluate)
    _train(file, "evaluation.patience=4", resume=True)
    assert [r["step"] for r in run.records if "eval_loss" in r] == [0, 1, 2, 3, 4, 5, 6]
    assert read_manifest(run.export).facts["step"] == 6
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["6"]
    shown = EventAccumulator(str(run.folder / "tensorboard"))
    shown.Reload()
    assert [event.step for event in shown.Scalars("eval_loss")] == [0, 1, 2, 3, 4, 5, 6]
    assert [event.step for event in shown.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in shown.Tensors("samples/text_summary")] == [0, 4, 6]
