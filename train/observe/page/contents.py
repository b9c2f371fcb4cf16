"""What a run's folder tells about it, in words and numbers."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from rich.console import Console

from ...best import find_eval_figures
from ...buckets.mirror import bring
from ...config import Config
from ...data.check import mark_loss
from ...data.datasets import DataContext, build_datasets
from ...data.pairs import side_of
from ...errors import UserError
from ...hf.hub import resolve_model
from ...hf.tokenizer import load_tokenizer
from ...model import load_model_config
from ...run import Run
from ..privacy import redact
from .changes import Change, find_changes

Record: TypeAlias = Mapping[str, Any]
Marked: TypeAlias = list[tuple[str, bool]]  # Parts of a text, and whether they have a loss.


class Sample(NamedTuple):
    """A prompt, and its completions before and after training by their labels."""

    prompt: str
    texts: list[tuple[str, str]]


def summarise(config: Config, records: Sequence[Record]) -> dict[str, str]:
    """A few lines on a run, by their labels."""
    mask = config.optimizer.mask
    settings = {"kind": mask.kind} | mask.model_dump(mode="json", exclude_defaults=True)
    trained = [record for record in records if "loss" in record]
    steps = max((record["step"] for record in records), default=0)
    lines = {
        "base model": str(redact(config.model.path)),
        "objective": config.objective.kind,
        "mask": ", ".join(f"{key}: {value}" for key, value in settings.items()),
        **({"lora": f"rank {lora.rank}, alpha {lora.alpha:g}"} if (lora := config.lora) else {}),
        "updates": f"{steps:,}",
    }
    for name, (first, last) in _evaluations(records).items():
        lines[name.replace("_", " ")] = f"{first:.4f} → {last:.4f}"
    for name, label in (("tokens_per_s", "tokens/s (median)"), ("mfu", "MFU (median)")):
        if values := [record[name] for record in trained if name in record]:
            median = statistics.median(values)
            lines[label] = f"{median:.1%}" if name == "mfu" else f"{median:,.0f}"
    lines["skipped updates"] = str(sum("skipped" in record for record in records))
    return lines


def _evaluations(records: Sequence[Record]) -> dict[str, tuple[float, float]]:
    """The first and the last value of every figure of evaluations."""
    found: dict[str, list[float]] = {}
    for record in records:
        for name in find_eval_figures(record):
            found.setdefault(name, []).append(record[name])
    return {name: (values[0], values[-1]) for name, values in found.items()}


def find_differences(configs: Sequence[Config]) -> list[tuple[str, list[str]]]:
    """The settings in which runs differ, with each run's value; their folders aside."""
    flat = [dict(_flatten(redact(c.model_dump(mode="json")))) for c in configs]
    keys = list(dict.fromkeys(key for tree in flat for key in tree))
    rows = [(key, [str(tree.get(key, "")) for tree in flat]) for key in keys if key != "run"]
    # A kind of mask has keys that another has not; those that are off there are left out.
    return [(key, cells) for key, cells in rows if len({_said(cell) for cell in cells}) > 1]


def _said(cell: str) -> str:
    return "" if cell in ("None", "False", "{}", "[]") else cell


def _flatten(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(tree, Mapping) or not tree:
        return [(path, tree)]
    return [
        pair
        for key, value in tree.items()
        for pair in _flatten(value, f"{path}.{key}" if path else str(key))
    ]


def find_samples(run: Run) -> list[Sample]:
    """Each prompt with its first and last completion, and a pair's answers."""
    by_prompt: dict[str, list[Record]] = {}
    for sample in run.samples:
        by_prompt.setdefault(sample["prompt"], []).append(sample)
    return [Sample(prompt, _texts(rows)) for prompt, rows in by_prompt.items()]


def _texts(rows: Sequence[Record]) -> list[tuple[str, str]]:
    first, last = rows[0], rows[-1]
    texts = [(f"after {last['step']:,} updates", last["completion"])]
    if len(rows) > 1:
        texts.insert(0, ("before training", first["completion"]))
    return texts + [(name, first[name]) for name in ("chosen", "rejected") if name in first]


def weight_changes(run: Run, config: Config) -> tuple[list[Change], str]:
    """How the export differs from the base; or nothing, and why."""
    bring(run.export)
    if not run.export.is_dir():
        return [], "the run has no export yet"
    try:
        base = resolve_model(config.model.path, config.model.revision)
        return find_changes(base, run.export), ""
    except UserError as error:
        return [], str(error)


def find_examples(run: Run, config: Config, count: int) -> list[Marked]:
    """The first training examples, of pairs both answers; none where they are not there any more.

    A stream is not read.
    """
    if config.data.streaming:
        return []
    try:
        base = resolve_model(config.model.path, config.model.revision)
        tokenizer = load_tokenizer(base, config.model.chat_template)
        console, size = Console(stderr=True), load_model_config(base).vocab_size
        context = DataContext.of(config, tokenizer, size, console, run.clock())
        train = build_datasets(config.data, context).train
    except UserError:
        return []
    found: list[Marked] = []
    for number in range(min(count, len(train.lengths))):
        example = train.examples[number]
        is_pair = example.tokens.ndim > 1
        for side in [side_of(example, 0), side_of(example, 1)] if is_pair else [example]:
            found.append(mark_loss(side, tokenizer, config.data.max_length))
    return found


def describe_machine(records: Sequence[Record]) -> str:
    """Versions and devices, as the run noted them when it began."""
    noted: dict[str, str] = next((r["machine"] for r in records if "machine" in r), {})
    return ", ".join(f"{name} {value}" for name, value in noted.items())
