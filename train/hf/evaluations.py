"""The evaluations of a run by tasks, as a table and as the metadata that the hub reads."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..files import atomic_file

Record = Mapping[str, Any]
FILE = "evaluations.jsonl"  # In a run's folder, beside its other records.


class Figure(NamedTuple):
    """One figure of one task.

    Attributes:
      step: the update after which the weights were evaluated.
      metric: its name, with the filter of the answers if there is one.
      error: its standard error, if lm-eval gives one.
    """

    step: int
    task: str
    num_fewshot: int
    metric: str
    value: float
    error: float | None


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """The evaluations of a run by its folder, in their order.

    Raises:
      UserError: for a line that is no evaluation.
    """
    try:
        lines = (folder / FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
            _ = records[-1]["step"], records[-1]["results"].items()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(
                f"{folder / FILE}:{number}: is not an evaluation; remove the line"
            ) from None
    return records


def add_evaluation(folder: Path, step: int, results: Mapping[str, Any]) -> None:
    """Appends lm-eval's results to a run's; its weights are those after `step` updates."""
    kept = ("results", "n-shot", "n-samples", "versions", "settings", "versions_of")
    record = {"step": step, **{key: results[key] for key in kept if key in results}}
    file = folder / FILE
    before = file.read_bytes() if file.is_file() else b""
    with atomic_file(file) as new:  # Without the end of a line that an older version cut off.
        line = json.dumps(record, default=str).encode() + b"\n"
        new.write_bytes(before[: before.rfind(b"\n") + 1] + line)


def newest_figures(records: Sequence[Record]) -> list[Figure]:
    """The figures of every task by step; an evaluation replaces an earlier one of its step."""
    found = {
        (figure.step, figure.task, figure.num_fewshot, figure.metric): figure
        for record in records
        for figure in _figures(record)
    }
    return sorted(found.values(), key=lambda figure: (figure.task, figure.metric, figure.step))


def metadata(name: str, figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """The model-index of a card: one result for each task and number of examples."""
    results: dict[tuple[str, int], dict[str, Any]] = {}
    for figure in figures:
        result = results.setdefault(
            (figure.task, figure.num_fewshot),
            {
                "task": {"type": "text-generation"},
                "dataset": {
                    "name": f"{figure.task} ({figure.num_fewshot}-shot)", "type": figure.task
                },
                "metrics": [],
                "source": {
                    "name": "lm-evaluation-harness",
                    "url": "https://github.com/EleutherAI/lm-evaluation-harness",
                },
            },
        )  # fmt: skip
        kind = figure.metric.partition(" ")[0]
        result["metrics"].append({"type": kind, "name": figure.metric, "value": figure.value})
    return [{"name": name, "results": list(results.values())}] if results else []


def section(figures: Sequence[Figure]) -> str:
    """The part of a card on them; empty if there are none."""
    if not figures:
        return ""
    lines = ["## Evaluation", "", "By lm-evaluation-harness:", ""]
    lines += ["| task | examples | metric | updates | value |", "|---|---|---|---|---|"]
    for figure in figures:
        error = "" if figure.error is None else f" ± {figure.error:.4f}"
        lines.append(
            f"| {figure.task} | {figure.num_fewshot} | {figure.metric} | {figure.step:,} | "
            f"{figure.value:.4f}{error} |"
        )
    return "\n".join(lines) + "\n"


def _figures(record: Record) -> Iterator[Figure]:
    for task, figures in record["results"].items():
        for key, value in figures.items():
            metric, comma, chain = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = figures.get(f"{metric}_stderr,{chain}")
            name = metric if chain == "none" else f"{metric} ({chain})"
            shots = int(record.get("n-shot", {}).get(task) or 0)
            yield Figure(
                record["step"], task, shots, name, float(value),
                float(error) if isinstance(error, (int, float)) else None,
            )  # fmt: skip
