"""What a run does beside its updates: shows, evaluates, completes prompts."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from .best import Best
from .data.loader import RunData
from .evaluation import make_evaluate
from .loop import Callback
from .observe.progress import Display
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

    def log_data(done: int) -> None:
        if done == 0 and data.summary:
            run.log({"step": 0, "data": list(data.summary)})

    return [
        Callback(on_start=log_data),
        Callback(display.start, display.show, on_end=display.stop),
        Callback(evaluate=make_evaluate(program, data)),
        Callback(evaluate=_completions(data, run, completer, best)),
    ]


def _completions(
    data: RunData, run: Run, completer: Completer, best: Best | None
) -> Callable[[Any, int], Mapping[str, Any] | None]:
    """Completes the prompts before the first update and after the last."""

    def complete(params: Any, step: int) -> None:
        if step in (0, data.steps) or (best is not None and best.is_over):
            for sample in completer(plain_params(params)):
                run.log_sample({"step": step, **sample})

    return complete
