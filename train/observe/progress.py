"""Live progress on a terminal, plain lines elsewhere."""

from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

FORMATS = {
    "loss": "{:.4f}",
    "eval_loss": "{:.4f}",
    "tokens_per_s": "{:,.0f}",
    "mfu": "{:.1%}",
    "masked_fraction": "{:.2%}",
    "learning_rate": "{:.2e}",
}
LABELS = {
    "loss": "loss",
    "eval_loss": "eval loss",
    "tokens_per_s": "tokens/s",
    "mfu": "MFU",
    "masked_fraction": "masked",
    "learning_rate": "lr",
}


class Display:
    """Shows records of the run as they come; use as a context manager."""

    def __init__(self, steps: int, done: int, console: Console) -> None:
        self._steps = steps
        self._console = console
        self._shown: dict[str, Any] = {}
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Progress(*columns, console=console)
        self._task = self._bar.add_task("train", total=steps, completed=done, left="")
        self._live = Live(self._bar, console=console, refresh_per_second=4)

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, record: dict[str, Any]) -> None:
        """Shows a record: under the bar on a terminal, as a line elsewhere."""
        if self._console.quiet:
            return
        left = record.get("seconds_left")
        said = "" if left is None else f"{_minutes(left)} left"
        if not self._console.is_terminal:
            line = f"step {record['step']}/{self._steps}  {describe(record)}  {said}"
            print(line.rstrip(), flush=True)
            return
        self._shown |= record
        self._bar.update(self._task, completed=record["step"])
        if said:
            self._bar.update(self._task, left=said)
        self._live.update(Group(self._bar, Text(describe(self._shown))), refresh=True)


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
