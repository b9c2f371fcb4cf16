"""The loop, with a counter for a model."""

import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.best import Best
from train.cadence import Cadence
from train.errors import UserError
from train.loop import Callback, Parts, train
from train.run import Run, read_records
from train.step import TrainState


class FakeCheckpoints:
    """Remembers which steps were saved."""

    def __init__(self) -> None:
        self.saved: list[int] = []
        self.best: list[int | None] = []
        self.failures = 0  # Of the last save.

    @property
    def latest_step(self) -> int | None:
        return self.saved[-1] if self.saved else None

    def save(self, state: TrainState, loader: Any, best: int | None = None) -> None:
        self.saved.append(int(state.step))
        self.best.append(best)
        assert loader.taken == int(state.step), "the position is that of the state"

    def poll(self) -> bool:
        return False

    def settle(self) -> None:
        """Nothing is being saved."""

    def wait(self) -> bool:
        if self.failures:
            self.failures -= 1
            self.saved.pop()
            return True
        return False


class FakeLoader:
    """Batches of seven tokens each, counted."""

    def __init__(self, taken: int) -> None:
        self.taken = taken

    def __next__(self) -> tuple[dict[str, Any], int]:
        self.taken += 1
        return {}, 7

    def describe(self, done: int) -> list[str]:
        return [f"sums.jsonl:{done + 1}"]


def _run(
    tmp_path: Path,
    start: int = 0,
    steps: int = 10,
    at: dict[int, Any] | None = None,
    peak: float | None = None,
    touch: Callable[[], object] = lambda: None,
    callbacks: Sequence[Callback] = (),
    failures: int = 0,
    best: Best | None = None,
    eval_losses: Sequence[float] = (2.0,) * 20,
    minutes: float = 0,
) -> tuple[TrainState, FakeCheckpoints, Run]:
    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        step = int(state.step) + 1
        touch()
        event = (at or {}).get(step)
        if callable(event):
            event()
        loss = event if event and not callable(event) else 1.0 / step
        metrics = {"loss": loss, "grad_norm": 1.0, "masked_fraction": 0.2, "num_loss_tokens": 5.0}
        metrics["finite"] = isinstance(loss, _OnDevice) or math.isfinite(loss)
        return TrainState(np.int32(step), state.params, ()), metrics

    parts = Parts(
        loader=FakeLoader(start),  # type: ignore[arg-type]
        train_step=train_step,
        learning_rate=lambda step: 0.1 * step,
        peak_per_s=peak,
    )
    run, saves = Run(tmp_path), FakeCheckpoints()
    saves.failures = failures
    state = TrainState(np.int32(start), None, ())
    callbacks = [
        Callback(
            on_record=run.log,
            evaluate=lambda params, step: {"eval_loss": eval_losses[step], "eval_accuracy": 0.5},
        ),
        *callbacks,
    ]
    cadence, before = Cadence(steps, 3, 5, 4, minutes), run.records
    # A minute an update, if minutes matter.
    clock = (lambda: 60.0 * parts.loader.taken) if minutes else time.perf_counter  # type: ignore[attr-defined]
    state = train(state, parts, cadence, saves, callbacks, clock, before=before, best=best)  # type: ignore[arg-type]
    return state, saves, run


def test_it_logs_evaluates_and_saves_when_it_is_time(tmp_path: Path) -> None:
    _, saves, run = _run(tmp_path)
    records = list(read_records(run.metrics_file))
    assert [r["step"] for r in records if "loss" in r] == [3, 4, 6, 8, 9, 10]
    assert [r["step"] for r in records if "eval_loss" in r] == [0, 5, 10]
    assert saves.saved == [4, 8, 10]


def test_it_saves_when_minutes_have_passed(tmp_path: Path) -> None:
    _, saves, run = _run(tmp_path, minutes=2)
    assert saves.saved == [3, 4, 6, 8, 10]
    assert [r["step"] for r in read_records(run.metrics_file) if "loss" in r] == [3, 4, 6, 8, 9, 10]


def test_the_best_evaluation_is_saved_and_a_run_without_a_better_one_ends(tmp_path: Path) -> None:
    losses = {0: 0.1, 5: 3.0, 10: 2.0, 15: 2.5, 20: 2.0, 25: 1.0}
    eval_losses = [losses.get(step, math.nan) for step in range(31)]
    best = Best("eval_loss", patience=2)
    state, saves, _ = _run(tmp_path, steps=30, best=best, eval_losses=eval_losses)
    assert int(state.step) == 20
    assert saves.saved == [4, 5, 8, 10, 12, 16, 20]
    assert saves.best == [None, 5, 5, 10, 10, 10, 10]
    assert (best.step, best.value) == (10, 2.0)
    # Begun again after its end, it does nothing; with more patience, it goes on.
    state, saves, _ = _run(tmp_path, start=20, steps=30, best=Best("eval_loss", patience=2))
    assert (int(state.step), saves.saved) == (20, [])
    best = Best("eval_loss", patience=3)
    state, saves, _ = _run(tmp_path, start=20, steps=26, best=best, eval_losses=eval_losses)
    assert saves.saved == [24, 25, 26]
    assert saves.best == [10, 25, 25]


def test_a_resumed_loop_knows_the_best_of_the_records(tmp_path: Path) -> None:
    losses = [9.0, *[2.0] * 5, *[3.0] * 20]
    _run(tmp_path, steps=8, best=Best("eval_loss", 3), eval_losses=losses)
    best = Best("eval_loss", 2)
    state, saves, _ = _run(tmp_path, start=8, steps=20, best=best, eval_losses=losses)
    # The evaluations after 8, the end of the first call, and after 10.
    assert (int(state.step), best.step, saves.best) == (10, 5, [5])


def test_callbacks_are_called_in_their_order(tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []

    def callback(name: str) -> Callback:
        return Callback(
            on_start=lambda step: calls.append((name, "start", step)),
            on_record=lambda record: calls.append((name, "record", record["step"])),
            evaluate=lambda params, step: calls.append((name, "evaluate", step)),
            on_save=lambda params, step: calls.append((name, "save", step)),
            on_end=lambda: calls.append((name, "end")),
        )

    _run(tmp_path, start=7, steps=9, callbacks=[callback("a"), callback("b")])
    events = [("start", 7), ("record", 8), ("save", 8), ("record", 9)]
    # What another callback evaluates is recorded at once.
    events += [("record", 9), ("evaluate", 9), ("save", 9), ("end",)]
    assert calls == [(name, *event) for event in events for name in "ab"]


def test_callbacks_are_told_of_the_end_of_a_loop_that_fails(tmp_path: Path) -> None:
    ended: list[bool] = []
    with pytest.raises(UserError):
        _run(
            tmp_path,
            at=dict.fromkeys((6, 7, 8), math.nan),
            callbacks=[Callback(on_end=lambda: ended.append(True))],
        )
    assert ended == [True]


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_after_the_update_and_saves(tmp_path: Path, number: int) -> None:
    handler = signal.getsignal(number)
    state, saves, _ = _run(tmp_path, at={5: lambda: os.kill(os.getpid(), number)})
    assert int(state.step) == 5
    assert saves.saved == [4, 5]
    assert signal.getsignal(number) is handler


def test_the_last_state_is_saved_again_where_it_could_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("train.loop.time.sleep", waits.append)
    _, saves, _ = _run(tmp_path, failures=2)
    assert saves.saved == [4, 8, 10]
    assert waits == [5, 5]


def test_updates_that_are_not_finite_are_recorded_and_trained_past(tmp_path: Path) -> None:
    _, saves, run = _run(tmp_path, at={2: math.nan, 4: math.inf, 5: -math.inf})
    assert saves.saved == [4, 8, 10]
    skipped = [r for r in run.records if "skipped" in r]
    assert [r["step"] for r in skipped] == [2, 4, 5]
    assert skipped[1] == {
        "step": 4,
        "skipped": "loss inf, gradient norm 1.0",
        "examples": ["sums.jsonl:4"],
    }
    rates = {r["step"]: r["learning_rate"] for r in run.records if "learning_rate" in r}
    # The optimizer has not counted them. Update 4 has a record of the speed, and no loss.
    expected = {3: 0.1, 4: 0.1, 6: 0.2, 8: 0.4, 9: 0.5, 10: 0.6}
    assert rates == {step: pytest.approx(rate) for step, rate in expected.items()}
    assert [r["step"] for r in run.records if "loss" in r] == [3, 6, 8, 9, 10]


def test_too_many_of_them_in_a_row_end_the_loop(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(UserError, match=r"^steps 6 to 8 were skipped, the last for loss nan"):
        _run(tmp_path, at=dict.fromkeys((2, 3, 6, 7, 8), math.nan))
    assert [r["step"] for r in run.records if "skipped" in r] == [2, 3, 6, 7, 8]


class _OnDevice:
    """A number that tells when it is asked for, which waits for the device."""

    def __init__(self, asked: list[int], step: int) -> None:
        self._asked, self._step = asked, step

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self._asked.append(self._step)
        return np.float32(1)

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


ON_DEVICE = jnp.ones(3)


@pytest.mark.parametrize(
    "touch",
    [
        lambda: jax.jit(lambda x: x + 1)(np.ones(3, np.float32)),
        lambda: ON_DEVICE + np.ones(3, np.float32),
        lambda: jax.jit(lambda x, n: x + n)(ON_DEVICE, 2.0),
    ],
    ids=["array to a jitted function", "array to an operation", "number to a jitted function"],
)
def test_an_implicit_transfer_in_the_step_is_refused(
    tmp_path: Path, touch: Callable[[], object]
) -> None:
    # From the host to a device, that is. On a CPU the guard does not see the other way, whose
    # arrays are read where they are: test_the_device_is_waited_for_only_where_... counts those.
    touch()
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        _run(tmp_path, touch=touch)


def test_an_explicit_transfer_in_the_step_is_allowed(tmp_path: Path) -> None:
    state, _, _ = _run(tmp_path, touch=lambda: jax.device_get(jax.device_put(np.ones(3))))
    assert int(state.step) == 10


def test_every_update_is_a_step_of_the_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, inside = [], []

    class Annotation:
        def __init__(self, name: str, step_num: int) -> None:
            self._entry = (name, step_num)

        def __enter__(self) -> None:
            steps.append(self._entry)
            inside.append(True)

        def __exit__(self, *_: object) -> None:
            inside.pop()

    monkeypatch.setattr(jax.profiler, "StepTraceAnnotation", Annotation)
    _run(tmp_path, touch=lambda: inside[0])
    assert steps == [("train", step) for step in range(10)]


def test_the_measured_program_runs_where_there_is_a_record_in_its_time() -> None:
    ran: list[str] = []

    def program(name: str) -> Callable[..., Any]:
        def run(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
            ran.append(name)
            figures = {"loss": 1.0, "grad_norm": 1.0, "finite": True}
            tensors = {"grad_norm": {"a": np.float32(2), "b": np.ones(2, np.float32)}}
            more = {"tensors": tensors} if name == "measured" else {}
            return TrainState(np.int32(int(state.step) + 1), None, ()), figures | more

        return run

    records: list[Any] = []
    parts = Parts(FakeLoader(0), program("plain"), measured_step=program("measured"))  # type: ignore[arg-type]
    callbacks = [Callback(on_record=records.append)]
    train(TrainState(np.int32(0), None, ()), parts, Cadence(5, 2, 0, 0), None, callbacks)
    assert ran == ["plain", "measured", "plain", "measured", "plain"]
    assert [(r["step"], r.get("tensors")) for r in records] == [
        (2, {"grad_norm": {"a": 2.0, "b": [1.0, 1.0]}}),
        (4, {"grad_norm": {"a": 2.0, "b": [1.0, 1.0]}}),
        (5, None),
    ]
