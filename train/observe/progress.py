"""Progress of a run: charts and a bar on a terminal, plain lines elsewhere."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from ..best import find_eval_figures
from .view import View

_LABELS_AND_FORMATS = {
    "loss": ("loss", "{:.4f}"),
    "eval_loss": ("eval loss", "{:.4f}"),
    "accuracy": ("accuracy", "{:.1%}"),
    "eval_accuracy": ("eval accuracy", "{:.1%}"),
    "rewards/margin": ("margin", "{:.3f}"),
    "eval_rewards/margin": ("eval margin", "{:.3f}"),
    "tokens_per_s": ("tokens/s", "{:,.0f}"),
    "rows_per_s": ("rows/s", "{:,.0f}"),
    "mfu": ("MFU", "{:.1%}"),
    "masked_fraction": ("masked", "{:.2%}"),
    "learning_rate": ("lr", "{:.2e}"),
}


class Display:
    """Shows the records of a run between `start` and `stop`.

    Args:
      steps: updates in all.
      console: where they are shown; None: on the screen.
    """

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self._steps = steps
        self._console = console or Console()
        # A dumb terminal would show nothing until the end.
        self._is_live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._shown: dict[str, Any] = {}
        self._view = View()
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Progress(*columns, console=self._console)
        self._task = self._bar.add_task("train", total=steps, left="")
        self._live = Live(self._bar, console=self._console, refresh_per_second=4)

    def start(self, done: int, records: Iterable[Mapping[str, Any]] = ()) -> None:
        """Shows that `done` updates are done; on a terminal, with a bar that stays in place.

        Args:
          records: the run's so far, with which the curves begin.
        """
        for record in records:
            self._view.add(record)
        self._bar.update(self._task, completed=done)
        if self._is_live:
            self._live.start()

    def stop(self) -> None:
        """Leaves the bar as it is."""
        self._live.stop()

    def show(self, record: dict[str, Any]) -> None:
        """Shows a record: under the bar on a terminal, as a line elsewhere."""
        if self._console.quiet:
            return
        if "skipped" in record:
            self._console.print(_skipped(record), highlight=False, markup=False, soft_wrap=True)
            return
        left = record.get("seconds_left")
        time_left = "" if left is None else f"{_clock(left)} left"
        if not self._is_live:
            line = f"step {record['step']}/{self._steps}  {_figures(record)}  {time_left}"
            print(line.rstrip(), flush=True)
            return
        self._shown |= record
        self._view.add(record)
        self._bar.update(self._task, completed=record["step"])
        if time_left:
            self._bar.update(self._task, left=time_left)
        self._live.update(Group(self._view, self._bar, Text(_figures(self._shown))), refresh=True)


def _figures(record: dict[str, Any]) -> str:
    """Returns the record's known figures in a fixed order: `loss 1.2345  tokens/s 812`."""
    named = {
        key: (key.replace("_", " "), "{:.4f}" if key.endswith("loss") else "{:.1%}")
        for key in find_eval_figures(record)
    }
    return "  ".join(
        f"{label} {template.format(record[key])}"
        for key, (label, template) in (_LABELS_AND_FORMATS | named).items()
        if key in record
    )


def _skipped(record: dict[str, Any]) -> str:
    """A line on an update that changed nothing, with the examples of its batch."""
    examples = record["examples"]
    more = f" and {len(examples) - 4} more" if len(examples) > 4 else ""
    of = f"; its batch: {', '.join(examples[:4])}{more}" if examples else ""
    return f"step {record['step']} is skipped: {record['skipped']}{of}"


def _clock(seconds: float) -> str:
    """Returns minutes:seconds, with hours if there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
