"""The training loop: batches → step → log → evaluate → save."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from .checkpoint import Checkpoints
from .distributed.preemption import preemption_guard
from .errors import UserError
from .observe.progress import Display
from .run import Run
from .step import Batch, TrainState


@dataclass(frozen=True)
class Cadence:
    """How often the loop does what, in updates."""

    steps: int
    log_every: int
    evaluate_every: int
    save_every: int


@dataclass(frozen=True)
class Parts:
    """What the loop calls; it knows nothing of models, data or meshes."""

    # (updates done, updates in all) -> each update's microbatches, and the tokens in them
    batches: Callable[[int, int], AbstractContextManager[Iterator[tuple[Batch, int]]]]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]
    evaluate: Callable[[Any], float | None]  # params -> eval loss
    sample: Callable[[Any], list[tuple[str, str]]]  # params -> prompts with their completions
    learning_rate: Callable[[int], Any]  # updates done -> of the next update
    peak_tokens_per_s: float | None = None  # at all the devices' peak, where that is known


def train(
    state: TrainState,
    parts: Parts,
    checkpoints: Checkpoints,
    cadence: Cadence,
    run: Run,
    display: Display,
    clock: Callable[[], float] = time.perf_counter,
) -> TrainState:
    """Updates the state until `cadence.steps`, or until SIGINT or SIGTERM asks to stop.

    The state it returns is saved. The device is waited for only where there is something to log,
    to evaluate or to save.

    Raises:
      UserError: when the loss is not finite; such a state is never saved.
    """
    start = step = int(state.step)
    if start == 0:
        _evaluate(state, parts, run, display, 0)
        _sample(state, parts, run, 0)
    with preemption_guard() as should_stop, parts.batches(step, cadence.steps) as batches:
        window = _Window(clock, step)
        last = step >= cadence.steps
        while not last:
            batch, tokens = window.timed(batches)
            state, metrics = parts.train_step(state, batch)
            step += 1
            window.tokens += tokens
            last = step == cadence.steps or should_stop(step)
            save = last or step % cadence.save_every == 0
            if save or step % cadence.log_every == 0:
                record = _numbers(step, metrics, parts)
                _refuse_non_finite(record, checkpoints)
                record |= window.close(step, cadence.steps)
                if parts.peak_tokens_per_s:
                    record["mfu"] = record["tokens_per_s"] / parts.peak_tokens_per_s
                run.log(record)
                display.show(record)
            if step % cadence.evaluate_every == 0 or step == cadence.steps:
                _evaluate(state, parts, run, display, step)
            if step == cadence.steps:
                _sample(state, parts, run, step)
            if save:  # Last: where there is a checkpoint, its records are whole.
                checkpoints.save(state)
            if save or step % cadence.evaluate_every == 0:
                window = _Window(clock, step)  # Speed is that of training alone.
    return state


class _Window:
    """The updates since the last record: how fast they were, and how long the rest will take."""

    def __init__(self, clock: Callable[[], float], step: int) -> None:
        self._clock, self._since, self._step = clock, clock(), step
        self._waited, self.tokens = 0.0, 0

    def timed(self, batches: Iterator[tuple[Batch, int]]) -> tuple[Batch, int]:
        """The next batch; the time that it takes is time lost."""
        since = self._clock()
        batch = next(batches)
        self._waited += self._clock() - since
        return batch

    def close(self, step: int, steps: int) -> dict[str, float]:
        now = self._clock()
        seconds = now - self._since
        figures = {
            "tokens_per_s": self.tokens / seconds,
            "data_wait": self._waited / seconds,
            "seconds_left": seconds / (step - self._step) * (steps - step),
        }
        self._since, self._step, self._waited, self.tokens = now, step, 0.0, 0
        return figures


def _numbers(step: int, metrics: dict[str, Any], parts: Parts) -> dict[str, Any]:
    """A step's metrics off the device; this waits for it."""
    record: dict[str, Any] = {"step": step}
    record |= {key: float(value) for key, value in metrics.items()}
    return record | {"learning_rate": float(parts.learning_rate(step - 1))}


def _refuse_non_finite(record: dict[str, Any], checkpoints: Checkpoints) -> None:
    if math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"]):
        return
    newest = checkpoints.latest_step
    raise UserError(
        f"step {record['step']}: loss {record['loss']}, gradient norm {record['grad_norm']}; "
        + ("nothing was saved before" if newest is None else f"the newest save is step {newest}")
        + "; lower optimizer.learning_rate or look at the data"
    )


def _evaluate(state: TrainState, parts: Parts, run: Run, display: Display, step: int) -> None:
    loss = parts.evaluate(state.params)
    if loss is not None:
        record = {"step": step, "eval_loss": loss}
        run.log(record)
        display.show(record)


def _sample(state: TrainState, parts: Parts, run: Run, step: int) -> None:
    for prompt, completion in parts.sample(state.params):
        run.log_sample({"step": step, "prompt": prompt, "completion": completion})
