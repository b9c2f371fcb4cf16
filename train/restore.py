"""A run's newest weights or a model folder's: opened, exported, and used to complete prompts."""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from .best import Best
from .checkpoint import Checkpoints
from .compact import abstract_compact, abstract_weights, compact_shardings, fingerprint
from .compact_checkpoint import abstract_stored, from_stored
from .config import Config
from .config.mask_bases import Lasting
from .config.mask_kinds import FixedMask
from .data.prompts import Prompt, prompt_ids
from .errors import UserError
from .files import check_destination
from .generate import BATCH_SIZE, Sampling, check_prompts, complete
from .hf.adapter import export_adapter
from .hf.card import model_card
from .hf.compare import Tuned
from .hf.delta import Contents, check_new, extract_model
from .hf.ends import find_ends
from .hf.evaluations import read_evaluations
from .hf.export import export, exported_files
from .hf.hub import resolve_model
from .hf.load import load_params
from .hf.safetensors import open_weights
from .hf.save import saved_tensors
from .hf.tokenizer import load_tokenizer, text_ids
from .model import ModelConfig, Params, abstract_params, load_model_config, logical_axes
from .model.lora import LoraParams, lora_shardings, merged
from .program import make_abstract_lora, make_forms
from .run import Run
from .sharding import abstract, make_mesh, param_shardings
from .step import plain_params


def export_run(folder: Path, out: Path | None, dtype: str | None = None) -> Path:
    """Writes a run's newest weights as a Hugging Face folder, and returns its path.

    If the run keeps its best checkpoint, the weights are those.

    Args:
      folder: the run's folder.
      out: the folder to write; None replaces the run's own export.
      dtype: of the stored weights, float32 or bfloat16; None: as the run's `export_dtype`.

    Raises:
      UserError: if `folder` is not a run with a checkpoint, `out` is not empty, or the run's own
        export has another dtype.
    """
    run = Run.open(folder)
    own = run.config().export_dtype
    dtype = dtype or own or "bfloat16"
    if out is not None:
        check_destination(out)
    elif own and dtype != own:  # The run would write it again when it is resumed.
        raise UserError(f"{run.export} is in {own}, as export_dtype says; set --out for {dtype}")
    config, base, model, step, params = _newest(run)
    export(
        model,
        params,
        base,
        out or run.export,
        dtype,
        tokenizer=load_tokenizer(base, config.model.chat_template),
        card=model_card(run.name, config, run.records, read_evaluations(run.folder), step),
        replace=out is None,
        step=step,
    )
    return out or run.export


def export_run_adapter(folder: Path, out: Path | None) -> Path:
    """Writes the newest adapter of a run, or its best, in PEFT's format, and returns its folder.

    Args:
      out: the folder to write; None: `adapter` in the run's own.

    Raises:
      UserError: as `export_run`, and if the run trains no adapter.
    """
    run = Run.open(folder)
    out, section = out or run.adapter, run.config().lora
    if section is None:
        raise UserError(f"{folder} trains no adapter; export it without --adapter")
    check_destination(out)
    config, *_, step, params = _newest(run)
    export_adapter(params, section, config.model.path, out, step)
    return out


def extract_run(folder: Path, base: Path, out: Path) -> Contents:
    """Writes the delta of a run's export, from a base, without writing the export.

    Raises:
      UserError: as `export_run`; if `out` exists, or the base has other tensors.
    """
    check_new(out)
    return extract_model(base, tuned_by_run(folder, base), out)


def tuned_by_run(folder: Path, base: Path) -> Tuned:
    """A run's export without files: weights in the dtype of the base's files, one at a time.

    Raises:
      UserError: as `export_run`.
    """
    run = Run.open(folder)
    with open_weights(base) as reader:
        labels = {reader.spec(name).dtype for name in reader.names}
    dtype = "float32" if "F32" in labels else "bfloat16"
    config, own_base, model, step, params = _newest(run)
    specs, tensor = saved_tensors(params, model, dtype, own_base)
    files = exported_files(
        model,
        own_base,
        dtype,
        tokenizer=load_tokenizer(own_base, config.model.chat_template),
        card=model_card(run.name, config, run.records, read_evaluations(run.folder), step),
    )
    return Tuned(folder, specs, tensor, files)


def _newest(run: Run) -> tuple[Config, Path, ModelConfig, int | None, Any]:
    """A run's config, base and architecture; the step of its newest or best weights, and those."""
    config = run.config()
    base = resolve_model(config.model.path, config.model.revision)
    model = load_model_config(base)
    return config, base, model, *restore(run, model, base, _best_step(run))


def _best_step(run: Run) -> int | None:
    """The step of the best checkpoint, if the run keeps that."""
    best = Best.of(run.config(), run.records)
    return best.saved_step(run.checkpoints) if best is not None else None


class Model:
    """A run's newest weights (or best, if it keeps those) or a model folder's, and the tokenizer.

    Attributes:
      folder: of the model, or of a run's base: config.json and the tokenizer are there.
      run: the run, if it is one.
      config: the architecture.
      tokenizer: as from `load_tokenizer`, with the run's chat template.
      ends: where the model stops.
      now: the time that chat templates are told.
      mesh: the devices that weights and caches are split over.
      step: of a run whose weights were read, the update after which they are.

    Args:
      source: the folder of a run, an export or another model, or a hub name.
      mesh: by default all devices along fsdp.

    Raises:
      UserError: if `source` is none.
    """

    def __init__(self, source: str, mesh: Mesh | None = None, revision: str | None = None) -> None:
        self.source, self.mesh = source, mesh or make_mesh()
        run = Run(Path(source))
        self.run = run if run.config_file.is_file() else None
        chat_template = None
        if self.run is None:
            self.folder = resolve_model(source, revision)
        else:
            section = run.config().model
            self.folder = resolve_model(section.path, section.revision)
            chat_template = section.chat_template
        self.config = load_model_config(self.folder)
        self.tokenizer = load_tokenizer(self.folder, chat_template)
        self.ends = find_ends(self.folder, self.tokenizer)
        self.now = self.run.clock() if self.run else datetime.now()
        self.step: int | None = None

    def prompt_ids(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """The ids of a user turn or a conversation, with the chat template unless `raw`."""
        if raw and not isinstance(prompt, str):
            raise UserError("turns need the chat template; give the prompt as text, or no --raw")
        if raw:
            return text_ids(self.tokenizer, str(prompt))
        return prompt_ids(self.tokenizer, prompt, self.now)

    def params(self, dtype: str = "float32") -> Params:
        """The weights, split over the mesh; norms in float32, the others in `dtype`.

        They are cast once, to what each product with them would cast them to.
        """
        if self.run is None:
            weights = load_params(self.folder, self.config, _shardings(self.config, self.mesh))
        else:
            self.step, restored = restore(
                self.run, self.config, self.folder, _best_step(self.run), self.mesh
            )
            weights = plain_params(restored)
            if isinstance(restored, LoraParams):  # As it is exported.
                weights = jax.jit(merged, static_argnums=1)(restored, dtype)
        if dtype == "float32":
            return weights

        def cast(path: Any, leaf: jax.Array) -> jax.Array:
            return leaf if "norm" in jax.tree_util.keystr(path) else leaf.astype(dtype)

        params: Params = jax.jit(partial(jax.tree_util.tree_map_with_path, cast))(weights)
        return params


def complete_prompts(
    source: str,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    raw: bool = False,
    warn: Callable[[str], None] | None = None,
    stop_strings: Sequence[str] = (),
    batch_size: int = BATCH_SIZE,
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> list[str]:
    """Completions of prompts.

    Args:
      source, mesh: as those of `Model`.
      prompts: each is a user turn of the chat template, or a conversation.
      raw: whether prompts are plain text instead.
      warn: is called with a line if the model's ends do not agree.
      stop_strings, batch_size, dtype: as those of `complete`.

    Raises:
      UserError: if the model cannot complete a prompt, or `source` is none.
    """
    model = Model(source, mesh)
    ids = [model.prompt_ids(prompt, raw=raw) for prompt in prompts]
    check_prompts(model.config, ids, sampling)  # Before the weights are read, which takes longer.
    if model.ends.conflict and warn:
        warn(model.ends.conflict)
    with jax.set_mesh(model.mesh):
        return complete(
            model.config,
            model.params(dtype),
            model.tokenizer,
            ids,
            sampling,
            model.ends.ids,
            dtype,
            stop_strings=stop_strings,
            batch_size=batch_size,
        )


def restore(
    run: Run,
    model: ModelConfig,
    base: Path,
    only: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[int | None, Any]:
    """The run's newest whole weights, or its `CompactParams` or `LoraParams`, and their step.

    Args:
      only: the step of the only checkpoint to read.
      mesh: by default all devices along fsdp.
    """
    config, mesh = run.config(), mesh or make_mesh()
    shardings = _shardings(model, mesh)
    like = _params_with_base(config, model, mesh)
    shapes = abstract(abstract_params(model), shardings)
    with Checkpoints(run.checkpoints, verify=config.checkpoint.verify, only=only) as checkpoints:
        if like is None:
            restored = checkpoints.restore_params(shapes)
            return checkpoints.restored_step, restored
        weights = load_params(base, model, shardings, like.weights)
        digest = fingerprint(weights)
        params = checkpoints.restore_params(abstract_stored(like, digest))
    return checkpoints.restored_step, from_stored(params, weights, like, digest)


def _params_with_base(config: Config, model: ModelConfig, mesh: Mesh) -> Any:
    """The ShapeDtypeStructs of the parameters, with shardings; None where weights are trained."""
    weights = abstract_weights(model, config.model.compute_dtype)
    shardings = _shardings(model, mesh)
    if config.lora is not None:
        adapted = make_abstract_lora(config.lora, weights)
        return abstract(adapted, lora_shardings(mesh, adapted, shardings, logical_axes(model)))
    if not config.optimizer.mask.is_compact:
        return None
    mask = config.optimizer.mask
    assert isinstance(mask, Lasting | FixedMask)
    params = abstract_compact(make_forms(mask, model, weights), weights)
    return abstract(params, compact_shardings(mesh, params, shardings))


def _shardings(model: ModelConfig, mesh: Mesh) -> Any:
    return param_shardings(mesh, abstract_params(model), logical_axes(model))
