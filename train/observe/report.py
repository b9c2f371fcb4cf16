"""The table and the sample completions at the end of a run, read from its folder."""

import math
import statistics
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..best import Best, find_eval_figures
from ..buckets.mirror import shown
from ..run import Run, read_records


def report(run: Run) -> RenderableType:
    """Renders the eval losses, the masked fraction, the speed and the folders; then completions."""
    records = list(read_records(run.metrics_file))
    evaluated: dict[str, list[float]] = {}
    for record in records:
        for name in find_eval_figures(record):
            evaluated.setdefault(name, []).append(record[name])
    trained = [r for r in records if "loss" in r]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, values in evaluated.items():
        change = f"{values[0]:.1%} → {values[-1]:.1%}"
        if name.endswith("loss"):
            share = values[-1] / values[0] - 1 if values[0] else math.nan
            change = f"{values[0]:.4f} → {values[-1]:.4f}  ({share:+.1%})"
        table.add_row(name.replace("_", " "), change)
    best = Best.of(run.config(), records) if run.config_file.is_file() else None
    if best is not None and best.step is not None:
        table.add_row("best", str(best))
    if trained:
        table.add_row("updates", str(trained[-1]["step"]))
        for key, value in trained[-1].items():
            if key.startswith("masked_fraction"):  # One for each of several masks.
                label = key.removeprefix("masked_fraction").replace("/", " ")
                table.add_row(f"masked gradient{label}", f"{value:.2%} of all entries")
        table.add_row("tokens/s", f"{_median(trained, 'tokens_per_s'):,.0f} (median)")
        mfu = _median(trained, "mfu")
        if mfu is not None:
            table.add_row("MFU", f"{mfu:.1%} of the devices' peak (median)")
        data_wait = _median(trained, "data_wait")
        if data_wait is not None:
            table.add_row("waiting for data", f"{data_wait:.1%} of the time (median)")
    if run.export.exists():
        table.add_row("tuned model", f"{shown(run.export)}  (loads in transformers)")
    table.add_row("run", f"{shown(run.folder)}  (config.yaml, metrics.jsonl, checkpoints/)")
    table.add_row("charts", f"gmt-train report {shown(run.folder)}")
    return Group(Text(), table, *_completions(run))


def _median(records: list[dict[str, Any]], key: str) -> float | None:
    """Returns the (upper) median of the records that have the key, None if there are none."""
    values = [record[key] for record in records if key in record]
    return statistics.median_high(values) if values else None


def _completions(run: Run) -> list[RenderableType]:
    """Renders each prompt with its first and its last completion."""
    by_prompt: dict[str, list[str]] = {}
    for sample in read_records(run.samples_file):
        by_prompt.setdefault(sample["prompt"], []).append(sample["completion"])
    panels: list[RenderableType] = []
    for prompt, completions in by_prompt.items():
        text = Text(prompt.strip() + "\n", style="dim")
        for name, completion in (("before", completions[0]), ("after", completions[-1])):
            text.append(f"\n{name}\n", style="bold not dim")
            text.append(completion.strip() + "\n", style="not dim")
        panels.append(Panel(text, title="completion", title_align="left"))
    return panels


def print_report(run: Run, console: Console) -> None:
    """Prints the report of a run."""
    console.print(report(run))
