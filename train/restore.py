"""Exports a run's newest weights, and completes prompts with them or a model folder's."""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from .best import Best
from .checkpoint import Checkpoints
from .compact import abstract_compact, abstract_weights, compact_shardings, fingerprint, make_forms
from .compact_checkpoint import abstract_stored, from_stored
from .config import Config
from .config.mask_bases import Lasting
from .data.prompts import prompt_ids
from .files import check_destination
from .generate import Sampling, check_prompts, complete
from .hf.card import model_card
from .hf.ends import find_ends
from .hf.export import export
from .hf.hub import resolve_model
from .hf.load import load_params
from .hf.tokenizer import load_tokenizer, text_ids
from .model import ModelConfig, abstract_params, load_model_config, logical_axes
from .run import Run
from .sharding import abstract, make_mesh, param_shardings
from .step import plain_params


def export_run(folder: Path, out: Path | None, dtype: str) -> Path:
    """Writes a run's newest weights as a Hugging Face folder, and returns its path.

    If the run keeps its best checkpoint, the weights are those.

    Args:
      folder: the run's folder.
      out: the folder to write; None replaces the run's own export.
      dtype: of the stored weights, float32 or bfloat16.

    Raises:
      UserError: if `folder` is not a run with a checkpoint, or `out` is not empty.
    """
    run = Run.open(folder)
    config = run.config()
    if out is not None:
        check_destination(out)
    base = resolve_model(config.model.path, config.model.revision)
    model = load_model_config(base)
    best = Best.of(config, run.records)
    only = best.saved_step(run.checkpoints) if best is not None else None
    step, params = restore(run, model, base, only)
    export(
        model,
        params,
        base,
        out or run.export,
        dtype,
        tokenizer=load_tokenizer(base, config.model.chat_template),
        card=model_card(run.name, config, run.records),
        replace=out is None,
        step=step,
    )
    return out or run.export


def complete_prompts(
    source: str,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    raw: bool = False,
    warn: Callable[[str], None] | None = None,
) -> list[str]:
    """Completions of prompts.

    Args:
      source: the folder of a run, an export or another model, or a hub name.
      prompts: each is a user turn of the chat template.
      raw: whether prompts are plain text instead.
      warn: is called with a line if the model's ends do not agree.

    Raises:
      UserError: if the model cannot complete a prompt, or `source` is none.
    """
    run = Run(Path(source))
    config = run.config() if run.config_file.is_file() else None
    if config is None:
        base, chat_template = resolve_model(source), None
    else:
        base = resolve_model(config.model.path, config.model.revision)
        chat_template = config.model.chat_template
    model = load_model_config(base)
    tokenizer = load_tokenizer(base, chat_template)
    now = run.clock() if config else datetime.now()
    ids = [
        text_ids(tokenizer, prompt) if raw else prompt_ids(tokenizer, prompt, now)
        for prompt in prompts
    ]
    check_prompts(model, ids, sampling)  # Before the weights are read, which takes longer.
    ends = find_ends(base, tokenizer)
    if ends.conflict and warn:
        warn(ends.conflict)
    if config is None:
        params = load_params(base, model, _shardings(model))
    else:
        params = plain_params(restore(run, model, base)[1])
    return complete(model, params, tokenizer, ids, sampling, ends.ids)


def restore(
    run: Run, model: ModelConfig, base: Path, only: int | None = None
) -> tuple[int | None, Any]:
    """The run's newest whole weights, or its `CompactParams`, and their step.

    Args:
      only: the step of the only checkpoint to read.
    """
    config = run.config()
    compact = _compact_params(config, model) if config.optimizer.mask.is_compact else None
    shapes = abstract(abstract_params(model), _shardings(model))
    verify = config.checkpoint.verify
    with Checkpoints(run.checkpoints, verify=verify, only=only) as checkpoints:
        if compact is None:
            restored = checkpoints.restore_params(shapes)
            return checkpoints.restored_step, restored
        weights = load_params(base, model, _shardings(model), compact.weights)
        digest = fingerprint(weights)
        params = checkpoints.restore_params(abstract_stored(compact, digest))
    return checkpoints.restored_step, from_stored(params, weights, compact, digest)


def _compact_params(config: Config, model: ModelConfig) -> Any:
    """The ShapeDtypeStructs of a compact run's parameters, with their shardings."""
    weights = abstract_weights(model, config.model.compute_dtype)
    mask = config.optimizer.mask
    assert isinstance(mask, Lasting)
    params = abstract_compact(make_forms(mask, weights), weights)
    return abstract(params, compact_shardings(make_mesh(), params, _shardings(model)))


def _shardings(model: ModelConfig) -> Any:
    """The parameters' shardings with all devices along fsdp."""
    return param_shardings(make_mesh(), abstract_params(model), logical_axes(model))
