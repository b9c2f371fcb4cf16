"""The training loop: batch → step → log → evaluate → save."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from .best import Best
from .cadence import Cadence, SaveTimer, Window
from .checkpoint import Checkpoints
from .data.loader import Loader
from .distributed.preemption import Guard, preemption_guard
from .errors import UserError
from .step import TrainState

# The metrics that tell whether an update was made, and why not.
_FINITE = ("finite", "loss", "grad_norm")
# Seconds after which the last state is saved again, where it could not be.
_SAVE_AGAIN = 5

Record = dict[str, Any]  # Figures with the `step`, the number of updates done, that they belong to.


def _ignore(*_: Any) -> None:
    """Does nothing."""


@dataclass(frozen=True)
class Callback:
    """Functions that the loop calls, in every process; those that are not needed are left out.

    Parameters that they are given are overwritten by the next update: copy what is to be kept.

    Attributes:
      on_start: called with the number of updates done before the first one of this call.
      on_record: called with the figures of an update or an evaluation.
      evaluate: called with the parameters and the number of updates done, when it is time to
        evaluate; returns figures to record, or None.
      on_save: called with the parameters and the number of updates done, when a checkpoint of them
        is being written.
      on_end: called after the last update, or when the loop ends with an exception.
      before_update: called before every update with the arrays that are trained, in the form of a
        tree, and the number of updates done; a loop whose callbacks wait for them is slow.
    """

    on_start: Callable[[int], object] = _ignore
    on_record: Callable[[Record], object] = _ignore
    evaluate: Callable[[Any, int], Mapping[str, Any] | None] = _ignore
    on_save: Callable[[Any, int], object] = _ignore
    on_end: Callable[[], object] = _ignore
    before_update: Callable[[Any, int], object] = _ignore


@dataclass(frozen=True)
class Parts:
    """What the loop calls; it knows nothing of models, data or meshes.

    Attributes:
      loader: yields each update's microbatches, and how many tokens or rows are in them.
      train_step: the update, (state, microbatches) → (state, metrics).
      learning_rate: updates done → the learning rate of the next update, to record it.
      unit: what the loader counts.
      peak_per_s: tokens or rows per second at the devices' peak rate, if that is known.
      measured_step: the update that computes what is recorded alone, which runs at each multiple
        of `log_every`.
    """

    loader: Loader
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]
    learning_rate: Callable[[int], Any] | None = None
    unit: str = "tokens"
    peak_per_s: float | None = None
    measured_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]] | None = None


def train(
    state: TrainState,
    parts: Parts,
    cadence: Cadence,
    checkpoints: Checkpoints | None = None,
    callbacks: Sequence[Callback] = (),
    clock: Callable[[], float] = time.perf_counter,
    *,
    before: Sequence[Record] = (),
    best: Best | None = None,
) -> TrainState:
    """Updates the state until `cadence.steps`, or until SIGINT, SIGTERM or SIGHUP asks to stop.

    The state that is returned is saved, if there are checkpoints. The loop waits for the device
    only where there is something to log, to evaluate or to save. Data is transferred between host
    and device only where the code says so (`jax.transfer_guard`).

    Args:
      before: the records of the run so far.
      best: the metric by which the best evaluation is saved too. The loop ends where it says so.

    Raises:
      UserError: if too many updates in a row are skipped because the loss or the gradient is not
        finite, or if the state cannot be saved.
    """
    step = int(state.step)
    best = best or Best("")  # The figure of no record.
    best.replay(before)
    calls = _Calls([Callback(on_record=best.add), *callbacks])
    skipped = _Skipped(parts.loader, calls, cadence.max_skipped, before, checkpoints)
    try:
        calls.start(step)
        with preemption_guard() as should_stop, jax.transfer_guard("disallow"):
            if step == 0:
                with should_stop.at_once():
                    calls.evaluate(state, 0)
            window, timer = Window(clock, step), SaveTimer(cadence.save_minutes, clock)
            last = step >= cadence.steps or best.is_over
            programs = _Programs(parts, cadence, should_stop)
            while not last:
                calls.update(state, step)
                trace = jax.profiler.StepTraceAnnotation("train", step_num=step)
                with trace, programs.of(step + 1) as train_step:
                    batch = window.take(parts.loader)
                    state, metrics = train_step(state, batch)
                step += 1
                if checkpoints is not None:
                    checkpoints.poll()
                skipped.add(step, metrics)
                last = step == cadence.steps or should_stop(step)
                save = last or cadence.saves(step)
                evaluate = cadence.evaluates(step) or step == cadence.steps
                log = save or cadence.logs(step)
                if log or evaluate:  # After an evaluation, the best may be saved.
                    skipped.report()
                save = save or (log and timer.is_over())
                if log:
                    speed = window.close(step, cadence.steps, parts.unit, parts.peak_per_s)
                    calls.record(_to_record(step, metrics, parts, skipped.count) | speed)
                if evaluate:
                    calls.evaluate(state, step)
                last = last or best.is_over
                save = save or last or (evaluate and best.step == step)
                if save and checkpoints is not None:  # Last: its records are complete when it is.
                    checkpoints.save(state, parts.loader, best.step)
                    calls.save(state, step)
                    timer.restart()
                if save or evaluate:
                    window = Window(clock, step)  # The speed is that of training alone.
            if checkpoints is not None:
                _wait_for_save(checkpoints, state, parts.loader, best.step)
    finally:
        calls.end()
    return state


def _wait_for_save(
    checkpoints: Checkpoints, state: TrainState, loader: Loader, best: int | None
) -> None:
    """Waits for the last save, which is tried again if it fails."""
    while checkpoints.wait():
        time.sleep(_SAVE_AGAIN)
        checkpoints.save(state, loader, best)


class _Programs:
    """The programs of an update; the first call of each compiles, and ends at once at a signal."""

    def __init__(self, parts: Parts, cadence: Cadence, should_stop: Guard) -> None:
        self._parts, self._cadence, self._should_stop = parts, cadence, should_stop
        self._started: set[bool] = set()

    @contextmanager
    def of(self, step: int) -> Iterator[Callable[..., Any]]:
        """The program of the update after which `step` updates are done."""
        measured = self._parts.measured_step is not None and self._cadence.logs(step)
        program = self._parts.measured_step if measured else self._parts.train_step
        assert program is not None
        with nullcontext() if measured in self._started else self._should_stop.at_once():
            yield program
        self._started.add(measured)


class _Calls:
    """Calls the callbacks, in their order; what they transfer is their own affair."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks

    def start(self, step: int) -> None:
        for callback in self._callbacks:
            callback.on_start(step)

    def update(self, state: TrainState, step: int) -> None:
        for callback in self._callbacks:
            callback.before_update(state.params, step)

    def record(self, record: Record) -> None:
        with jax.transfer_guard("allow"):
            for callback in self._callbacks:
                callback.on_record(record)

    def evaluate(self, state: TrainState, step: int) -> None:
        for callback in self._callbacks:
            with jax.transfer_guard("allow"):
                figures = callback.evaluate(state.params, step)
            if figures:
                self.record({"step": step, **figures})

    def save(self, state: TrainState, step: int) -> None:
        with jax.transfer_guard("allow"):
            for callback in self._callbacks:
                callback.on_save(state.params, step)

    def end(self) -> None:
        for callback in self._callbacks:
            callback.on_end()


class _Skipped:
    """The updates that changed nothing because their loss or gradient is not finite.

    Attributes:
      count: those of the run so far, which the optimizer has not counted.
    """

    def __init__(
        self,
        loader: Loader,
        calls: _Calls,
        most: int,
        before: Sequence[Record],
        checkpoints: Checkpoints | None,
    ) -> None:
        self._loader, self._calls, self._most = loader, calls, most
        self._checkpoints = checkpoints
        self.count = sum("skipped" in record for record in before)
        self._recent: list[tuple[int, dict[str, Any]]] = []
        self._in_a_row: list[int] = []

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Notes an update, without waiting for it."""
        self._recent.append((step, {name: metrics[name] for name in _FINITE}))

    def report(self) -> None:
        """Records those since the last call; waits for the device.

        Raises:
          UserError: if they are too many in a row.
        """
        finite = jax.device_get([figures["finite"] for _, figures in self._recent])
        for (step, figures), is_finite in zip(self._recent, finite, strict=True):
            if is_finite:
                self._in_a_row = []
                continue
            self.count += 1
            self._in_a_row.append(step)
            loss, norm = (float(x) for x in jax.device_get([figures[n] for n in _FINITE[1:]]))
            reason = f"loss {loss}, gradient norm {norm}"
            examples = list(self._loader.describe(step - 1))
            self._calls.record({"step": step, "skipped": reason, "examples": examples})
            if len(self._in_a_row) >= self._most:
                if self._checkpoints is not None:
                    self._checkpoints.settle()
                raise UserError(
                    f"steps {self._in_a_row[0]} to {step} were skipped, the last for {reason}; the "
                    "checkpoints before are whole; lower the learning rate, look at the data of "
                    "these steps, or raise max_skipped"
                )
        self._recent = []


def _to_record(step: int, metrics: dict[str, Any], parts: Parts, num_skipped: int) -> Record:
    """A step's metrics on the host; waits for the device. A skipped update has none."""
    record: Record = {"step": step}
    figures = jax.device_get(metrics)
    tensors = figures.pop("tensors", None)
    if figures.pop("finite"):
        if tensors is not None:
            record["tensors"] = jax.tree.map(lambda array: array.tolist(), tensors)
        record |= {name: float(value) for name, value in figures.items()}
    if parts.learning_rate is not None:
        with jax.transfer_guard("allow"):  # A schedule is computed from a number of the host's.
            rate = parts.learning_rate(step - 1 - num_skipped)
            record["learning_rate"] = float(np.asarray(rate))
    return record
