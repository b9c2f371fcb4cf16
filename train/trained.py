"""A run's newest weights, or a model folder's: exported, or put to use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from train.checkpoint import Checkpoints
from train.export import export
from train.generate import Sampling, complete
from train.model import (
    ModelConfig,
    abstract_params,
    load_model_config,
    load_params,
    logical_axes,
    resolve_model,
)
from train.run import Run
from train.sharding import make_mesh, param_shardings
from train.tokenizer import chat_prompt, load_tokenizer


def _shardings(model: ModelConfig) -> tuple[Any, Any]:
    """The parameters' shapes, and where they lie with all devices along fsdp."""
    shapes = abstract_params(model)
    return shapes, param_shardings(make_mesh(), shapes, logical_axes(model))


def _load_run(run: Run) -> tuple[Path, ModelConfig, Any]:
    """The base model's folder, the model's config and the run's newest weights."""
    config = run.config()
    base = resolve_model(config.model.path, config.model.revision)
    model = load_model_config(base)
    shapes, shardings = _shardings(model)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    checkpoints = Checkpoints(run.checkpoints)
    try:
        return base, model, checkpoints.restore_params(abstract)
    finally:
        checkpoints.close()


def export_run(folder: Path, out: Path | None, dtype: str) -> Path:
    """Writes a run's newest weights as a Hugging Face folder; returns where."""
    run = Run.open(folder)
    base, model, params = _load_run(run)
    out = out or run.export
    export(model, params, base, out, dtype)
    return out


def complete_prompts(
    source: str, prompts: Sequence[str], sampling: Sampling, *, raw: bool = False
) -> list[str]:
    """Completions by a run, an export or any model folder or hub name."""
    run = Run(Path(source))
    if run.config_file.is_file():
        base, model, params = _load_run(run)
    else:
        base = resolve_model(source)
        model = load_model_config(base)
        params = load_params(base, model, _shardings(model)[1])
    tokenizer = load_tokenizer(base)
    texts = prompts if raw else [chat_prompt(tokenizer, prompt) for prompt in prompts]
    return complete(model, params, tokenizer, texts, sampling)
