"""The loop, with a counter for a model."""

import math
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from rich.console import Console

from train.errors import UserError
from train.loop import Cadence, Parts, train
from train.observe.progress import Display
from train.run import Run, read_records
from train.step import TrainState


class FakeCheckpoints:
    """Remembers which steps were saved."""

    def __init__(self) -> None:
        self.saved: list[int] = []

    @property
    def latest_step(self) -> int | None:
        return self.saved[-1] if self.saved else None

    def save(self, state: TrainState) -> None:
        self.saved.append(int(state.step))


def _run(
    tmp_path: Path,
    start: int = 0,
    steps: int = 10,
    at: dict[int, Any] | None = None,
    peak: float | None = None,
) -> tuple[TrainState, FakeCheckpoints, Run]:
    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        step = int(state.step) + 1
        event = (at or {}).get(step)
        if callable(event):
            event()
        loss = event if event and not callable(event) else 1.0 / step
        metrics = {"loss": loss, "grad_norm": 1.0, "masked_fraction": 0.2, "num_loss_tokens": 5.0}
        return TrainState(jnp.int32(step), state.params, ()), metrics

    parts = Parts(
        batches=lambda start, stop: nullcontext(({}, 7) for _ in range(start, stop)),
        train_step=train_step,
        evaluate=lambda params: 2.0,
        sample=lambda params: [("p", "c")],
        learning_rate=lambda step: 0.1 * step,
        peak_tokens_per_s=peak,
    )
    run, saves = Run(tmp_path), FakeCheckpoints()
    state = TrainState(jnp.int32(start), None, ())
    with Display(steps, start, Console()) as display:
        state = train(state, parts, saves, Cadence(steps, 3, 5, 4), run, display)  # type: ignore[arg-type]
    return state, saves, run


def test_it_logs_evaluates_and_saves_when_it_is_time(tmp_path: Path) -> None:
    _, saves, run = _run(tmp_path)
    records = list(read_records(run.metrics_file))
    assert [r["step"] for r in records if "loss" in r] == [3, 4, 6, 8, 9, 10]
    assert [r["step"] for r in records if "eval_loss" in r] == [0, 5, 10]
    assert saves.saved == [4, 8, 10]
    assert [r["step"] for r in read_records(run.samples_file)] == [0, 10]


def test_the_learning_rate_of_a_record_is_that_of_its_update(tmp_path: Path) -> None:
    _, _, run = _run(tmp_path)
    first = next(r for r in read_records(run.metrics_file) if "loss" in r)
    assert first["learning_rate"] == pytest.approx(0.2)  # update 3, two done before


def test_a_resumed_loop_does_not_begin_again(tmp_path: Path) -> None:
    _, saves, run = _run(tmp_path, start=8)
    assert [r["step"] for r in read_records(run.metrics_file)] == [9, 10, 10]
    assert saves.saved == [10]


def test_a_finished_loop_does_nothing(tmp_path: Path) -> None:
    state, saves, run = _run(tmp_path, start=10)
    assert int(state.step) == 10
    assert not saves.saved
    assert not run.metrics_file.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_update_and_saves(tmp_path: Path, number: int) -> None:
    handler = signal.getsignal(number)
    state, saves, _ = _run(tmp_path, at={5: lambda: os.kill(os.getpid(), number)})
    assert int(state.step) == 5
    assert saves.saved == [4, 5]
    assert signal.getsignal(number) is handler


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_unsaved(tmp_path: Path, loss: float) -> None:
    with pytest.raises(UserError, match=rf"step 8: loss {loss}.*newest save is step 4"):
        _run(tmp_path, at={8: loss})


class _OnDevice:
    """A number that tells when it is asked for, which waits for the device."""

    def __init__(self, asked: list[int], step: int) -> None:
        self._asked, self._step = asked, step

    def __float__(self) -> float:
        self._asked.append(self._step)
        return 1.0

    def __bool__(self) -> bool:
        return True


def test_the_device_is_waited_for_only_where_something_is_logged(tmp_path: Path) -> None:
    asked: list[int] = []
    _run(tmp_path, at={step: _OnDevice(asked, step) for step in range(1, 11)})
    assert asked == [3, 4, 6, 8, 9, 10]


@pytest.mark.parametrize("peak", [None, 1e9])
def test_mfu_is_the_share_of_the_peak_where_there_is_one(
    tmp_path: Path, peak: float | None
) -> None:
    _, _, run = _run(tmp_path, peak=peak)
    records = [r for r in read_records(run.metrics_file) if "loss" in r]
    assert len(records) == 6
    for record in records:
        assert record.get("mfu") == (peak and pytest.approx(record["tokens_per_s"] / peak))
