"""A run's newest weights, or a model folder's: exported, or put to use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoints
from .config import Config
from .files import check_destination
from .generate import Sampling, complete
from .hf.export import export
from .hf.hub import resolve_model
from .hf.load import load_params
from .hf.tokenizer import load_tokenizer, prompt_ids, text_ids
from .model import ModelConfig, abstract_params, load_model_config, logical_axes
from .run import Run
from .sharding import abstract, make_mesh, param_shardings


def _shardings(model: ModelConfig) -> tuple[Any, Any]:
    """The parameters' shapes, and where they lie with all devices along fsdp."""
    shapes = abstract_params(model)
    return shapes, param_shardings(make_mesh(), shapes, logical_axes(model))


def _load_run(run: Run, config: Config) -> tuple[Path, ModelConfig, Any]:
    """The base model's folder, the model's config and the run's newest weights."""
    base = resolve_model(config.model.path, config.model.revision)
    model = load_model_config(base)
    shapes, shardings = _shardings(model)
    checkpoints = Checkpoints(run.checkpoints)
    try:
        return base, model, checkpoints.restore_params(abstract(shapes, shardings))
    finally:
        checkpoints.close()


def export_run(folder: Path, out: Path | None, dtype: str) -> Path:
    """Writes a run's newest weights as a Hugging Face folder; returns where."""
    run = Run.open(folder)
    config = run.config()
    if out is not None:
        check_destination(out)
    base, model, params = _load_run(run, config)
    template, place = config.model.chat_template, out or run.export
    export(model, params, base, place, dtype, chat_template=template, replace=out is None)
    return place


def complete_prompts(
    source: str, prompts: Sequence[str], sampling: Sampling, *, raw: bool = False
) -> list[str]:
    """Completions by a run, an export or any model folder or hub name."""
    run, template = Run(Path(source)), None
    if run.config_file.is_file():
        config = run.config()
        base, model, params = _load_run(run, config)
        template = config.model.chat_template
    else:
        base = resolve_model(source)
        model = load_model_config(base)
        params = load_params(base, model, _shardings(model)[1])
    tokenizer = load_tokenizer(base, template)
    to_ids = text_ids if raw else prompt_ids
    ids = [to_ids(tokenizer, prompt) for prompt in prompts]
    return complete(model, params, tokenizer, ids, sampling)
