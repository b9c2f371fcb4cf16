"""A config to start from, for a model, the data and this machine: `gmt-train init`."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from rich.console import Console

from ..config import Config, make_config
from ..config.yaml import apply_override
from ..errors import UserError
from ..files import atomic_file
from ..hf.hub import resolve_model
from ..hf.tokenizer import load_tokenizer
from ..model import ModelConfig, abstract_params, load_model_config
from .datasets import DataContext, build_datasets
from .splits import Split

# Rows are this long at most, unless the settings say otherwise: most of the data is seldom longer.
LONGEST = 4096
TOKENS = 8192  # of a microbatch on a device
BYTES = 16  # of an entry in float32: weight, gradient and AdamW's two moments
EPOCHS = 3

Tree = dict[str, Any]


@dataclass(frozen=True)
class _Found:
    """What a config depends on."""

    model: ModelConfig
    has_template: bool
    format: str
    lengths: np.ndarray  # tokens of each example
    devices: Sequence[jax.Device]
    command: str  # that trains with it

    @property
    def num_parameters(self) -> int:
        shapes = jax.tree.leaves(abstract_params(self.model))
        return sum(math.prod(shape.shape) for shape in shapes)


def write_starter(
    file: Path, model: str, data: str, settings: Sequence[str], console: Console
) -> Config:
    """Writes a commented config for fine-tuning a model on data, on this machine.

    Args:
      file: the YAML file to write.
      model: a folder or a hub name.
      data: files, a folder or a hub data set, as in `data.train`.
      settings: `key.path=value`, which replace what would be written.

    Raises:
      UserError: if `file` exists, or model or data cannot be used, as `sft` would.
    """
    if file.exists():
        raise UserError(f"{file} exists; choose another name, or remove it")
    tree: Tree = {"run": f"runs/{file.stem}", "model": {"path": model}, "data": {"train": data}}
    given = _with(tree, settings)
    base = resolve_model(given.model.path, given.model.revision)
    tokenizer = load_tokenizer(base, given.model.chat_template)
    found = _look(given, load_model_config(base), tokenizer, console)
    tree = _merged(tree, _choose(found, given))
    for setting in settings:
        apply_override(tree, setting)
    config = make_config(tree, str(file))
    _build(config, found.model, tokenizer, console)  # Refuses what a run would.
    text = "".join(f"{line}\n" for line in (*_header(file, found), *_lines(tree, _comments(found))))
    with atomic_file(file) as new:
        new.write_text(text, encoding="utf-8")
    return config


def _with(tree: Tree, settings: Sequence[str]) -> Config:
    """The config of all examples, with settings; nothing is held out and the limits are high."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    tree["data"] |= {"eval_fraction": 0, "max_length": 2**30}
    for setting in settings:
        apply_override(tree, setting)
    config = make_config(tree, "settings")
    if config.data.streaming:
        raise UserError(
            "init reads all of the data; name a part of it, and set data.streaming in the file"
        )
    return config


def _look(config: Config, model: ModelConfig, tokenizer: Any, console: Console) -> _Found:
    train = _build(config, model, tokenizer, console)
    reading = train.sources[0].store.understood[0][0].reading  # The commonest.
    return _Found(
        model,
        bool(tokenizer.chat_template),
        reading.format,
        train.lengths,
        jax.devices(),
        "dpo" if config.objective.is_preference else "sft",
    )


def _build(config: Config, model: ModelConfig, tokenizer: Any, console: Console) -> Split:
    """The training data; its tokens are kept, so that a run does not tokenise again."""
    context = DataContext.of(config, tokenizer, model.vocab_size, console, None)
    return build_datasets(config.data, context).train


def _choose(found: _Found, given: Config) -> Tree:
    """The settings that fit what was found, in the order of the file."""
    num_examples = len(found.lengths)
    on_cpu = found.devices[0].platform == "cpu"
    # A few examples are evaluated on, and a tenth of the data at most.
    fraction = 0 if num_examples < 20 else 0.1 if num_examples < 1000 else 0.02
    fraction = fraction if not given.data.eval_sources() else 0
    longest = _round_up(int(min(found.lengths.max(), LONGEST)), 64)
    longest = min(longest, found.model.max_position_embeddings)
    num_rows = int(num_examples * (1 - fraction) * 0.9)  # Fewer may be left: the split is random.
    size, num_microbatches = _batch(num_rows, longest, len(found.devices))
    steps = given.steps or math.ceil(num_examples * (1 - fraction) * EPOCHS / size)
    length = {} if given.steps else {"epochs": EPOCHS}
    return {
        **length,
        "model": {
            "compute_dtype": "float32" if on_cpu else "bfloat16",
            "remat": "dots" if on_cpu else "full",
        },
        "data": {"max_length": longest, "eval_fraction": fraction},
        "batch": {"size": size, "num_microbatches": num_microbatches},
        "optimizer": {
            "learning_rate": 2e-6 if given.objective.is_preference else 2e-5,
            "warmup_steps": steps // 20,
            "mask": {"kind": "gmt_mask", "mask_ratio": 0.2},
        },
        "evaluation": {"every": max(1, steps // 4), "max_new_tokens": min(64, longest // 2)},
        "checkpoint": {"every": max(1, steps // 4), "keep": 1},
        "log_every": max(1, steps // 20),
        "export_dtype": "bfloat16",
    }


def _batch(num_rows: int, longest: int, num_devices: int) -> tuple[int, int]:
    """Rows per update, about ten updates an epoch, and in how many parts they are computed."""
    rows = 1
    while rows < 32 and rows * 2 * 10 <= num_rows // num_devices:
        rows *= 2
    at_once = 1
    while at_once < rows and at_once * 2 * longest <= TOKENS:
        at_once *= 2
    return rows * num_devices, rows // at_once


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _merged(tree: Tree, other: Mapping[str, Any]) -> Tree:
    merged = dict(tree)
    for key, value in other.items():
        merged[key] = _merged(merged.get(key, {}), value) if isinstance(value, Mapping) else value
    return merged


def _header(file: Path, found: _Found) -> Iterator[str]:
    lengths, template = found.lengths, "its own" if found.has_template else "no"
    needed, memory = found.num_parameters * BYTES, _memory(found.devices)
    kind = found.devices[0].device_kind
    yield (
        f"# {len(lengths):,} examples of the format {found.format}, of {lengths.min():,} to "
        f"{lengths.max():,} tokens, {int(np.median(lengths)):,} in the median."
    )
    yield (
        f"# A {found.model.model_type} model of {found.num_parameters / 1e6:,.1f} million "
        f"parameters with {template} chat template."
    )
    yield (
        f"# Weights, gradients and AdamW's state take {needed / 2**30:,.2f} GiB, activations more; "
        f"here: {len(found.devices)} of {kind}, {memory / 2**30:,.1f} GiB."
    )
    if needed > memory:
        yield "# That is more than there is: take a smaller model, or more devices."
    yield f"#   gmt-train data check --config {file}"
    yield f"#   gmt-train {found.command} --config {file}"
    yield "# Every key: gmt-train config"
    yield ""


def _memory(devices: Sequence[jax.Device]) -> int:
    """Bytes of memory of all devices; a CPU has the machine's."""
    stats = devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) * len(devices)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _comments(found: _Found) -> dict[str, str]:
    """What stands behind a key."""
    dropped = "longer examples are dropped, see data.overlong"
    return {
        "run": "everything that the run writes",
        "epochs": "or steps: 100",
        "model.chat_template": "a Jinja file",
        "model.compute_dtype": "float32 is what CPUs are fast at, bfloat16 GPUs and TPUs",
        "model.remat": "full takes the least memory",
        "data.max_length": f"tokens; {dropped}",
        "data.eval_fraction": "held out for the eval loss; or name files in data.eval",
        "batch.size": "rows per update",
        "batch.num_microbatches": "more take less memory",
        "optimizer.mask.kind": "none: plain fine-tuning; others: docs/methods.md",
        "optimizer.mask.mask_ratio": "the fraction of the gradient's entries that is masked",
        "evaluation.max_new_tokens": "of two prompts of the data; or name some in prompts",
        "export_dtype": "of the tuned model in RUN/export, which transformers loads",
    }


def _lines(tree: Mapping[str, Any], comments: Mapping[str, str], prefix: str = "") -> Iterator[str]:
    """The tree as YAML, with comments behind its keys."""
    indent = "  " * prefix.count(".")
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:"
            yield from _lines(value, comments, f"{name}.")
            continue
        dumped = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
        text = dumped.removesuffix("\n").removesuffix("\n...")
        comment = f"  # {comments[name]}" if name in comments else ""
        yield f"{indent}{key}: {text}{comment}"
