"""The training loop: batch → step → log → evaluate → save."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax

from .checkpoint import Checkpoints
from .data.loader import Loader, TrainBatch
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
    """What the loop calls; it knows nothing of models, data or meshes.

    Attributes:
      loader: yields each update's microbatches, and the tokens in them.
      evaluate: params → loss and metrics on the evaluation data; empty if there is none.
      sample: params → prompts with their completions.
      learning_rate: updates done → the learning rate of the next update.
      peak_tokens_per_s: tokens per second at the devices' peak rate, if that is known.
    """

    loader: Loader
    train_step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
    evaluate: Callable[[optax.Params], dict[str, float]]
    sample: Callable[[Any], list[tuple[str, str]]]
    learning_rate: Callable[[int], float]
    peak_tokens_per_s: float | None = None


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

    The state that is returned is saved. The loop waits for the device only where there is something
    to log, to evaluate or to save. Data is transferred between host and device only where the code
    says so (`jax.transfer_guard`).

    Raises:
      UserError: if the loss is not finite; such a state is never saved.
    """
    step = int(state.step)
    with preemption_guard() as should_stop, jax.transfer_guard("disallow"):
        if step == 0:
            _evaluate(state, parts, run, display, 0)
            _sample(state, parts, run, 0)
        window = _Window(clock, step)
        last = step >= cadence.steps
        while not last:
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                batch, num_tokens = window.take(parts.loader)
                state, metrics = parts.train_step(state, batch)
            step += 1
            window.num_tokens += num_tokens
            last = step == cadence.steps or should_stop(step)
            save = last or step % cadence.save_every == 0
            if save or step % cadence.log_every == 0:
                record = _to_record(step, metrics, parts)
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
            if save:  # Last: a checkpoint's records are complete when it is.
                checkpoints.save(state, parts.loader)
            if save or step % cadence.evaluate_every == 0:
                window = _Window(clock, step)  # The speed is that of training alone.
    return state


class _Window:
    """The updates since the last record: how fast they were, and how long the rest will take."""

    def __init__(self, clock: Callable[[], float], step: int) -> None:
        self._clock, self._since, self._step = clock, clock(), step
        self._waited, self.num_tokens = 0.0, 0

    def take(self, loader: Loader) -> TrainBatch:
        """The next batch; measures the time that the loop waits for it."""
        since = self._clock()
        batch = next(loader)
        self._waited += self._clock() - since
        return batch

    def close(self, step: int, steps: int) -> dict[str, float]:
        """The figures of the updates up to this step; the next window begins."""
        now = self._clock()
        seconds = now - self._since
        figures = {
            "tokens_per_s": self.num_tokens / seconds,
            "data_wait": self._waited / seconds,
            "seconds_left": seconds / (step - self._step) * (steps - step),
        }
        self._since, self._step, self._waited, self.num_tokens = now, step, 0.0, 0
        return figures


def _to_record(step: int, metrics: dict[str, Any], parts: Parts) -> dict[str, Any]:
    """A step's metrics on the host; waits for the device."""
    record: dict[str, Any] = {"step": step}
    record |= {name: float(value) for name, value in jax.device_get(metrics).items()}
    return record | {"learning_rate": parts.learning_rate(step - 1)}


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
    figures = parts.evaluate(state.params)
    if figures:
        record = {"step": step} | {f"eval_{name}": value for name, value in figures.items()}
        run.log(record)
        display.show(record)


def _sample(state: TrainState, parts: Parts, run: Run, step: int) -> None:
    for prompt, completion in parts.sample(state.params):
        run.log_sample({"step": step, "prompt": prompt, "completion": completion})
