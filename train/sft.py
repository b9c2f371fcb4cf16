"""Supervised fine-tuning: puts model, data, mesh and optimizer together and runs the loop."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from .best import Best
from .buckets.fetch import cache_path, fetch, shared_cache
from .buckets.mirror import push
from .buckets.workplace import writing
from .callbacks import make_callbacks
from .checkpoint import Checkpoints
from .compact_checkpoint import Base, CompactCheckpoints
from .config import Config, dotted, make_config
from .data.digest import digest_files
from .data.loader import RunData, open_data
from .data.rows import keep_rows
from .distributed.processes import check_equal, main_process_first
from .draw import begin
from .errors import UserError
from .evaluation import check_metric
from .fit import Fitted, fit
from .flops import peak_tokens_per_s
from .hf.adapter import WEIGHTS
from .hf.card import model_card
from .hf.ends import find_ends
from .hf.evaluations import read_evaluations
from .hf.export import export
from .hf.hub import resolve_model
from .hf.load import load_params
from .hf.tokenizer import describe_tokenizer, load_tokenizer
from .loop import Callback
from .model import ModelConfig, Params, load_model_config
from .observe.backends import find_openings
from .observe.report import print_report
from .optimizer import make_schedule, undecided
from .program import Program, keep_compiled
from .reference import Reference, compute_reference, find_reference
from .restore import restore
from .run import Run
from .samples import Completer
from .sharding import check_rows, make_mesh

# Seconds in which process 0 must have tokenised the data, while the others wait.
DATA_TIMEOUT = 6 * 3600


def sft(
    config: Config | Mapping[str, Any],
    *,
    rows: Iterable[Mapping[str, Any]] | None = None,
    eval_rows: Iterable[Mapping[str, Any]] | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> Run:
    """Fine-tunes a model as the config says, prints the report and returns the run.

    A run that is finished is reported again without training.

    Args:
      config: as from `load_config`, or the keys of a config's file as a dictionary.
      rows: records in memory, in any format that files of data may have, in place of `data.train`;
        with a dictionary alone.
      eval_rows: likewise in place of `data.eval`.
      resume: whether to continue the run in the config's folder, if there is one.
      console: where progress and report are printed; None: on the screen.

    Returns:
      The run: its `folder`, its `records` and `samples`, and the folder of its `export`.

    Raises:
      UserError: before anything is written, if model, data, mesh or folder are not as needed.
    """
    config = _complete_config(config, rows, eval_rows)
    console = console or Console()
    with writing(config.run) as folder, shared_cache(config.cache):
        run = Run(folder)
        run.check(config, resume)
        with run.held():
            run.stopped = not run.is_finished(config) and not _train(config, run, console)
            if not run.stopped:
                print_report(run, console)
    return run


def _train(config: Config, run: Run, console: Console) -> bool:
    """Trains up to the last update and exports; returns False if it was asked to stop before."""
    keep_compiled(config)
    find_openings(config.track)  # Reports what is not installed.
    mesh = make_mesh(**config.mesh.model_dump())
    num_rows = config.batch.size // config.batch.num_microbatches
    check_rows(mesh, num_rows, config.data.max_length)
    base = resolve_model(config.model.path, config.model.revision)
    model = load_model_config(base)
    model.check_length(config.data.max_length, "data.max_length")
    tokenizer = load_tokenizer(base, config.model.chat_template)
    ends = find_ends(base, tokenizer)
    if ends.conflict:
        console.print(ends.conflict, highlight=False, markup=False, soft_wrap=True)
    completer = Completer(config, model, tokenizer, ends.ids)
    completer.add_prompts(config.evaluation.prompts, run.clock())
    reference = find_reference(config, base, tokenizer)
    contents = {**model.describe(), **describe_tokenizer(tokenizer)}
    contents["the tokens that end a completion"] = str(ends.ids)
    contents["the reference model"] = reference.digest
    if config.lora is not None and config.lora.adapter is not None:
        contents["the adapter"] = digest_files([fetch(config.lora.adapter) / WEIGHTS])
    run.check_contents(contents)  # Before the data, which take longer.
    data = _open(config, tokenizer, model, mesh, run, reference, console)
    contents |= data.digests
    completer.add_data_prompts(data.prompts)
    program = Program(config, model, mesh, data.steps)
    with jax.set_mesh(mesh), closing(data.loader):
        compute_reference(program, reference, data.passes, console)
        best = Best.of(config)
        callbacks = partial(make_callbacks, program, data, run, completer, best, console)
        fitted = _fit(program, base, data, run, contents, best, callbacks)
        _print_end(config, data, fitted, best, console)
        if fitted.step < data.steps and not (best is not None and best.is_over):
            return False
    if config.export_dtype:
        _export(run, config, model, fitted, base, tokenizer, best)
    return True


def _print_end(
    config: Config, data: RunData, fitted: Fitted, best: Best | None, console: Console
) -> None:
    """Prints what is to be known of the mask and the data, and why training ended."""
    lines = [undecided(config.optimizer, fitted.opt_state, fitted.params), data.stream]
    if best is not None and best.is_over and fitted.step < data.steps:
        lines.append(f"ended early at step {fitted.step}: the best was {best}")
    elif fitted.step < data.steps:
        lines.append(f"stopped and saved at step {fitted.step}; go on with --resume")
    for line in filter(None, map(str, filter(None, lines))):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _open(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    model: ModelConfig,
    mesh: Mesh,
    run: Run,
    reference: Reference,
    console: Console,
) -> RunData:
    """The run's data, which all processes agree on."""
    now = run.clock()
    with main_process_first("tokenised data", DATA_TIMEOUT):
        data = open_data(config, tokenizer, model.vocab_size, mesh, console, now, reference.digest)
    contents = {**dotted(config, {"cache"}), **data.digests, **data.named_digests}
    contents["the reference model"] = reference.digest
    contents["whether the run's folder has checkpoints"] = run.checkpoints.is_dir()
    check_equal({name: str(content) for name, content in contents.items()})
    return data


def _complete_config(
    config: Config | Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]] | None,
    eval_rows: Iterable[Mapping[str, Any]] | None,
) -> Config:
    """The config, with files of the rows in memory as its data."""
    given = {"train": rows, "eval": eval_rows}
    in_memory = {key: part for key, part in given.items() if part is not None}
    if isinstance(config, Config):
        if in_memory:
            raise UserError("rows need a config that is a dictionary, without data.train")
        return config
    tree = {**config, "data": dict(config.get("data") or {})}
    folder = cache_path(tree.get("cache", Config.model_fields["cache"].default)) / "rows"
    for key, part in in_memory.items():
        if key in tree["data"]:
            raise UserError(f"data.{key} is set and rows are given; give one of them")
        tree["data"][key] = str(keep_rows(part, folder))
    return make_config(tree)


def _fit(
    program: Program,
    base: Path,
    data: RunData,
    run: Run,
    contents: Mapping[str, str],
    best: Best | None,
    callbacks: Callable[[], list[Callback]],
) -> Fitted:
    """Begins the run or goes on with it, up to its last update or a request to stop."""
    config, model, mesh = program.config, program.model, program.mesh
    load, open_checkpoints = _beginning(program, base, data)
    # Weights and masks that cannot be read are reported before the run's folder is made.
    loaded = None if run.checkpoints.is_dir() else load()
    program.check_mask()
    check_metric(program, data, config.checkpoint.keep_best)
    run.start(config, contents, data.named_digests)
    push(run.folder)  # A bucket that cannot be written is reported before training.
    checkpoint = config.checkpoint.model_dump(exclude={"every", "minutes", "keep_best"})
    return fit(
        program.abstract_params,
        program.objective,
        program.optimizer,
        data.loader,
        data.steps,
        load=lambda: load() if loaded is None else loaded,
        init=program.init_opt_state,
        mesh=mesh,
        shardings=program.shardings.params,
        folder=run.folder,
        resume=True,
        log_every=config.log_every,
        evaluate_every=config.evaluation.every,
        save_every=config.checkpoint.every,
        save_minutes=config.checkpoint.minutes or 0,
        max_skipped=config.max_skipped,
        best=best,
        checkpoints=partial(open_checkpoints, **checkpoint, facts=run.facts),
        callbacks=callbacks(),
        measure=program.measure,
        learning_rate=make_schedule(config.optimizer, data.steps),
        unit="tokens",
        peak_per_s=peak_tokens_per_s(
            model, config.data.max_length, mesh.devices.flat[0], mesh.size
        ),
    )


def _export(
    run: Run,
    config: Config,
    model: ModelConfig,
    fitted: Fitted,
    base: Path,
    tokenizer: Any,
    best: Best | None,
) -> None:
    """Writes the run's final weights, or the best if it keeps those, into its own folder."""
    assert config.export_dtype is not None, "asked for"
    step, params = fitted.step, fitted.params
    chosen = best.saved_step(run.checkpoints) if best is not None else None
    if chosen is not None and chosen != step:
        for leaf in jax.tree.leaves((params, fitted.opt_state)):
            if not jnp.issubdtype(leaf.dtype, jax.dtypes.extended):  # Random keys.
                leaf.delete()  # The best needs its memory.
        _, params = restore(run, model, base, chosen)
        step = chosen
    export(
        model,
        params,
        base,
        run.export,
        config.export_dtype,
        tokenizer=tokenizer,
        card=model_card(run.name, config, run.records, read_evaluations(run.folder), step),
        replace=True,
        step=step,
    )


def _beginning(
    program: Program, base: Path, data: RunData
) -> tuple[Callable[[], Any], Callable[..., Checkpoints]]:
    """The function that makes the parameters to begin with, and what opens checkpoints of them."""

    def load() -> Params:
        return load_params(base, program.model, program.weight_shardings, program.abstract_weights)

    if not program.has_base:
        return load, Checkpoints
    weights = Base(load)
    if program.config.lora is not None:
        return lambda: program.add_adapters(weights.load()), partial(CompactCheckpoints, weights)
    return lambda: begin(program, weights.load(), data.loader), partial(CompactCheckpoints, weights)
