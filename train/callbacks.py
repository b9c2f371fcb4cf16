"""What a run does beside its updates: shows, evaluates, completes prompts."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rich.console import Console

from .best import Best
from .data.loader import RunData
from .distributed.processes import is_main_process
from .evaluation import make_evaluate
from .loop import Callback
from .observe.backends import find_openings
from .observe.privacy import describe_code, redact
from .observe.profile import Profile
from .observe.progress import Display
from .observe.trackers import TrackedRun, Trackers
from .program import Program
from .run import Run
from .samples import Completer
from .step import plain_params


def make_callbacks(
    program: Program,
    data: RunData,
    run: Run,
    completer: Completer,
    best: Best | None,
    console: Console,
) -> list[Callback]:
    """The callbacks of a run, in their order."""
    display = Display(data.steps, console)
    trackers = _open_trackers(program, run)
    every, profile = program.config.evaluation.sample_every, program.config.profile
    show = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    trace = Profile(run.folder / "profile", profile.start, profile.steps, show)

    def log_data(done: int) -> None:
        if done == 0 and data.summary:
            run.log({"step": 0, "data": list(data.summary), "machine": describe_code()})

    def start_display(done: int) -> None:
        display.start(done, [record for record in run.records if 0 < done >= record["step"]])

    return [
        Callback(on_start=log_data),
        Callback(start_display, display.show, on_end=display.stop),
        Callback(
            lambda done: trackers.start(done, run.folder / "trackers.json"),
            trackers.log,
            on_end=trackers.stop,
        ),
        Callback(before_update=trace.before_update, on_end=trace.stop),
        Callback(evaluate=make_evaluate(program, data)),
        Callback(evaluate=_completions(data, run, completer, best, trackers, every)),
    ]


def _completions(
    data: RunData,
    run: Run,
    completer: Completer,
    best: Best | None,
    trackers: Trackers,
    every: int | None,
) -> Callable[[Any, int], Mapping[str, Any] | None]:
    """Completes the prompts before the first update, when it is time, and after the last."""

    def complete(params: Any, step: int) -> None:
        is_last = step == data.steps or (best is not None and best.is_over)
        if is_last or step % (every or math.inf) == 0:
            samples = completer(plain_params(params))
            for sample in samples:
                run.log_sample({"step": step, **sample})
            trackers.log_samples(step, samples)

    return complete


def _open_trackers(program: Program, run: Run) -> Trackers:
    """The trackers of the config; of several processes, the first one's alone."""
    config = program.config

    def describe(done: int, run_id: str) -> TrackedRun:
        settings = redact(config.model_dump(mode="json"))
        facts = {**describe_code(), "steps": str(program.steps)}
        return TrackedRun(run.folder, config.track_project, run.name, run_id, settings, facts, done)

    return Trackers(find_openings(config.track if is_main_process() else ()), describe)
