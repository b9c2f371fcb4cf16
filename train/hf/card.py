"""The model card of an export: what was tuned, on which data, how, and with which result."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

import gmt_jax

from ..best import Best, find_eval_figures
from ..config import Config
from .evaluations import metadata, newest_figures, section

Record: TypeAlias = Mapping[str, Any]

# Sections of the config that say how the weights came about; no paths of the machine are in them.
SETTINGS: dict[str, Any] = {"seed": True, "batch": True, "optimizer": True}
ADAPTER: dict[str, Any] = {"lora": {"rank", "alpha", "target_modules"}}
# Endings of data files: no name on the hub.
FILES = (".jsonl", ".json", ".csv", ".parquet", ".gz", ".zst", ".zip")


def model_card(
    name: str,
    config: Config,
    records: Sequence[Record],
    evaluations: Sequence[Record] = (),
    step: int | None = None,
) -> str:
    """README.md for the weights that a run has now, as the hub shows it.

    Data and models on this machine are named by their last name alone: a card is published.

    Args:
      name: the model's.
      records: what the run logged.
      evaluations: those of the run's weights by tasks; the metadata has those after `step` updates.
    """
    figures = newest_figures(evaluations)
    index = metadata(name, [figure for figure in figures if figure.step == step])
    parts = [_header(config, index), _title(name, config), _data(config, records)]
    parts.append(_method(config, records))
    parts += [_results(config, records), section(figures), _use(name)]
    return "\n".join(filter(None, parts))


def _header(config: Config, index: list[dict[str, Any]]) -> str:
    """The metadata that the hub reads."""
    named = [source for sources in config.evaluation.data.values() for source in sources]
    sources = [source.path for source in (*config.data.train, *config.data.eval, *named)]
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["gmt-jax", config.objective.kind],
    }
    if _is_hub_name(config.model.path):
        header["base_model"] = config.model.path
    if hub_names := list(dict.fromkeys(filter(_is_hub_name, sources))):
        header["datasets"] = hub_names
    if config.optimizer.mask.kind != "none":
        header["tags"].append("gradient-mask-tuning")
    if index:
        header["model-index"] = index
    return f"---\n{_yaml(header)}---\n"


def _title(name: str, config: Config) -> str:
    revision = f" (revision {config.model.revision})" if config.model.revision else ""
    template = ", with another chat template" if config.model.chat_template else ""
    return (
        f"# {name}\n\n{_public(config.model.path)}{revision}, fine-tuned with "
        f"[gmt-jax](https://github.com/gmt-jax/gmt-jax) {gmt_jax.__version__}{template}.\n"
    )


def _data(config: Config, records: Sequence[Record]) -> str:
    data = config.data
    lines = ["## Data", "", "| source | used for | split | weight |", "|---|---|---|---|"]
    uses = [("training", data.train_sources()), ("evaluation", data.eval_sources())]
    for key, sources in config.evaluation.data.items():
        uses.append((f"evaluation: {key}", tuple(map(data.fill, sources))))
    for use, sources in uses:
        for source in sources:
            name = _public(source.path)
            at = f" at {source.revision}" if source.revision else ""
            lines.append(f"| {name}{at} | {use} | {source.split} | {source.weight:g} |")
    summary = next((record["data"] for record in records if "data" in record), ())
    lines += ["", *(f"- {line}" for line in summary)] if summary else []
    if not data.eval_sources() and data.eval_fraction:
        lines += ["", f"{data.eval_fraction:.1%} of the training data is held out for evaluation."]
    trained_on = {
        "assistant": "all turns of the assistant and completions",
        "last": "the assistant's last turn and completions",
        "everything": "every token",
    }
    loss_on = f"is on {trained_on[data.loss_on]}"
    if config.objective.is_preference:
        loss_on = "compares the chosen and the rejected answer of each pair"
    lines += [
        "",
        f"The loss {loss_on}; rows have at most {data.max_length:,} tokens "
        f"(longer examples: {data.overlong}; packing: {data.packing}).",
        "",
    ]
    return "\n".join(lines)


def _method(config: Config, records: Sequence[Record]) -> str:
    done = max((record["step"] for record in records), default=0)
    settings = config.model_dump(mode="json", include=SETTINGS | (ADAPTER if config.lora else {}))
    kind = config.optimizer.mask.kind
    masked = [record["masked_fraction"] for record in records if "masked_fraction" in record]
    share = f", which masked {masked[-1]:.2%} of all entries in the last update" if masked else ""
    mask = (
        "without a mask"
        if kind == "none" and config.lora is None
        else f"of low-rank adapters (LoRA) of rank {config.lora.rank}, merged into the weights"
        if config.lora is not None
        else f"under the mask `{kind}`{share} "
        "([Gradient-Mask Tuning](https://arxiv.org/abs/2406.15330))"
    )
    training, rows = "Supervised fine-tuning", "rows"
    if config.objective.is_preference:
        training, rows = f"Preferences by the objective `{config.objective.kind}`", "pairs"
    return (
        f"## Training\n\n{training}: {done:,} updates of {config.batch.size} {rows} by "
        f"AdamW, {mask}; matrix products in {config.model.compute_dtype}, what is trained in "
        "float32.\n\n"
        f"```yaml\n{_yaml(settings)}```\n"
    )


def _results(config: Config, records: Sequence[Record]) -> str:
    """The evaluations before and after training, and the best if that is what is exported."""
    evaluated = [record for record in records if find_eval_figures(record)]
    if not evaluated:
        return ""
    names = find_eval_figures(evaluated[0])
    best = Best.of(config, records)
    shown = [evaluated[0], *evaluated[1:][-1:]]
    if best is not None and best.step is not None:
        shown = [r for r in evaluated if r["step"] in (best.step, shown[0]["step"])]
    rows = [
        " | ".join(
            [f"{record['step']:,}", *(f"{record.get(name, math.nan):.4f}" for name in names)]
        )
        for record in shown
    ]
    titles = " | ".join(["updates", *(name.replace("_", " ") for name in names)])
    lines = [f"| {titles} |", "|---" * (1 + len(names)) + "|", *(f"| {row} |" for row in rows)]
    return "## Results\n\n" + "\n".join(lines) + "\n"


def _use(name: str) -> str:
    return (
        "## Use\n\n```python\nfrom transformers import pipeline\n\n"
        f'chat = pipeline("text-generation", "{name}")\n'
        'print(chat([{"role": "user", "content": "Hello!"}], max_new_tokens=128))\n```\n'
    )


def _yaml(tree: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return text


def _is_hub_name(path: str) -> bool:
    """Whether it is owner/name and no file or folder here."""
    owner, slash, name = path.partition("/")
    here = path.startswith((".", "~", "/")) or path.endswith(FILES) or Path(path).exists()
    here = here or "*" in path
    return bool(owner and slash and name) and "/" not in name and not here


def _public(path: str) -> str:
    return path if _is_hub_name(path) else Path(path).name
