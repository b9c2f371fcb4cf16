"""Supervised fine-tuning: puts model, data, mesh and optimizer together and runs the loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from train.checkpoint import Checkpoints, abstract
from train.config import Config
from train.errors import UserError
from train.export import export
from train.generate import Sampling, complete
from train.loop import Cadence, Parts, train
from train.model import (
    ModelConfig,
    abstract_params,
    choose_attention,
    load_model_config,
    load_params,
    logical_axes,
    resolve_model,
)
from train.objective.sft import sft_loss
from train.observe.progress import Display
from train.observe.report import print_report
from train.optimizer import make_optimizer, make_schedule
from train.run import Run
from train.sharding import make_mesh, param_shardings
from train.step import Batch, TrainState, jit_eval_step, jit_train_step, state_shardings
from train.supply import Supply, make_supply
from train.tokenizer import load_tokenizer, prompt_ids


def sft(config: Config, *, resume: bool, console: Console) -> None:
    """Fine-tunes a model as the config says, and prints the report.

    A run that is finished is reported again without training.

    Raises:
      UserError: before anything is written, where model, data, mesh or folder are not as needed.
    """
    run = Run(Path(config.run))
    run.check(config, resume)
    if run.is_finished(config):
        print_report(run, console)
        return
    mesh = make_mesh(**config.mesh.model_dump())
    _check_rows(config, mesh)
    base = resolve_model(config.model.path, config.model.revision)
    model = load_model_config(base)
    attention = choose_attention(config.model.attention, model, mesh, config.model.compute_dtype)
    tokenizer = load_tokenizer(base, config.model.chat_template)
    supply = make_supply(config, tokenizer, model.vocab_size, mesh, console)
    steps = supply.steps
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(config.optimizer, steps, config.seed)
        shapes = abstract_params(model)
        shardings = state_shardings(
            mesh, optimizer, shapes, param_shardings(mesh, shapes, logical_axes(model))
        )
        initial = _initial_state(model, base, optimizer, shardings)
        # Weights that cannot be read are told before the run's folder is there.
        state = None if run.checkpoints.is_dir() else initial()
        run.start(config)
        checkpoints = Checkpoints(run.checkpoints, config.checkpoint.keep)
        try:
            if checkpoints.latest_step is not None:
                state = checkpoints.restore(_abstract_state(optimizer, shapes, shardings))
            elif state is None:
                state = initial()
            done = int(state.step)
            run.forget_after(done or -1)  # What comes before the first update is done again.
            parts = _parts(
                config,
                model,
                attention,
                tokenizer,
                mesh,
                optimizer,
                shardings,
                supply,
                checkpoints,
            )
            cadence = Cadence(
                steps, config.log_every, config.evaluation.every, config.checkpoint.every
            )
            with Display(steps, done, console) as display:
                state = train(state, parts, checkpoints, cadence, run, display)
        finally:
            checkpoints.close()
        if int(state.step) < steps:
            console.print(f"stopped and saved at step {int(state.step)}; go on with --resume")
            return
        if config.export_dtype:
            export(
                model,
                state.params,
                base,
                run.export,
                config.export_dtype,
                chat_template=config.model.chat_template,
                replace=True,
            )
    print_report(run, console)


def _abstract_state(optimizer: Any, shapes: Any, shardings: TrainState) -> TrainState:
    opt_state = jax.eval_shape(optimizer.init, shapes)
    step = jax.ShapeDtypeStruct((), np.int32)
    return abstract(TrainState(step, shapes, opt_state), shardings)


def _initial_state(
    model: ModelConfig, base: Path, optimizer: Any, shardings: TrainState
) -> Callable[[], TrainState]:
    """Pre-trained weights and a fresh optimizer state, made in place on the mesh."""

    def initial() -> TrainState:
        params = load_params(base, model, shardings.params)
        opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
        return TrainState(jax.device_put(np.int32(0), shardings.step), params, opt_state)

    return initial


def _check_rows(config: Config, mesh: Mesh) -> None:
    rows = config.batch.size // config.batch.num_microbatches
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % ways:
        raise UserError(
            f"batch: a microbatch has {rows} rows (size / num_microbatches), not divisible by the "
            f"{ways} devices along data and fsdp; change batch.size or batch.num_microbatches"
        )


def _parts(
    config: Config,
    model: ModelConfig,
    attention: str,
    tokenizer: Any,
    mesh: Mesh,
    optimizer: Any,
    shardings: TrainState,
    supply: Supply,
    checkpoints: Checkpoints,
) -> Parts:
    """The loop's calls, bound to this run."""
    section = config.model
    dtype, remat = section.compute_dtype, section.remat

    def loss(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return sft_loss(model, params, batch, dtype=dtype, remat=remat, attention=attention)

    eval_step = jit_eval_step(loss, mesh, shardings.params)

    def evaluate(params: Any) -> float | None:
        if supply.held_out is None:
            return None
        total = weight = 0.0
        with supply.held_out() as batches:
            for batch in batches:
                sums = eval_step(params, batch)
                total, weight = total + float(sums[0]), weight + float(sums[1])
        return total / weight

    prompts = config.evaluation.prompts
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    sampling = Sampling(config.evaluation.max_new_tokens)

    def sample(params: Any) -> list[tuple[str, str]]:
        if not prompts:
            return []
        made = complete(model, params, tokenizer, ids, sampling, dtype)
        return list(zip(prompts, made, strict=True))

    return Parts(
        batches=lambda start, stop: supply.batches(start, stop, checkpoints.attach_stream),
        train_step=jit_train_step(loss, optimizer, mesh, shardings),
        evaluate=evaluate,
        sample=sample,
        learning_rate=make_schedule(config.optimizer, supply.steps),
    )
