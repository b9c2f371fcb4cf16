"""Live progress on a terminal, plain lines elsewhere."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

FORMATS = {
    "loss": "{:.4f}",
    "heldout_loss": "{:.4f}",
    "tokens_per_s": "{:,.0f}",
    "masked_fraction": "{:.2%}",
    "learning_rate": "{:.2e}",
}
LABELS = {
    "loss": "loss",
    "heldout_loss": "held-out",
    "tokens_per_s": "tokens/s",
    "masked_fraction": "masked",
    "learning_rate": "lr",
}


class Display:
    """Shows records of the run as they come; use as a context manager."""

    def __init__(self, steps: int, done: int, console: Console) -> None:
        self._steps = steps
        self._shown: dict[str, Any] = {}
        self._console = console
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("train", total=steps, completed=done, said="")

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, record: dict[str, Any]) -> None:
        """Shows a record: in the bar on a terminal, as a line elsewhere."""
        if self._console.is_terminal:
            self._shown |= record
            self._progress.update(self._task, completed=record["step"], said=describe(self._shown))
        else:
            left = record.get("seconds_left")
            tail = "" if left is None else f"  {_minutes(left)} left"
            print(f"step {record['step']}/{self._steps}  {describe(record)}{tail}", flush=True)


def describe(record: dict[str, Any]) -> str:
    """`loss 1.2345  tokens/s 812`: the record's known figures in a fixed order."""
    return "  ".join(
        f"{LABELS[key]} {form.format(record[key])}"
        for key, form in FORMATS.items()
        if key in record
    )


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
