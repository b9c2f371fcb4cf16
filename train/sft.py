"""Supervised fine-tuning: puts model, data, mesh and optimizer together and runs the loop."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from train.checkpoint import Checkpoints, abstract_state
from train.config import Config
from train.data import Batches, Examples, build_datasets
from train.errors import UserError
from train.export import export
from train.generate import Sampling, complete
from train.loop import Cadence, Parts, train
from train.model import (
    ModelConfig,
    abstract_params,
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
from train.sharding import batch_sharding, make_mesh, param_shardings
from train.step import (
    Batch,
    TrainState,
    jit_eval_step,
    jit_train_step,
    microbatch_sharding,
    state_shardings,
)
from train.tokenizer import chat_prompt, load_tokenizer, pad_id


def sft(config: Config, *, resume: bool, console: Console) -> None:
    """Fine-tunes a model as the config says, and prints the report.

    A run that is finished is reported again without training.

    Raises:
      UserError: before anything is written, where model, data, mesh or folder are not as needed.
    """
    run = Run(Path(config.run))
    run.check(config, resume)
    mesh = make_mesh(**config.mesh.model_dump())
    _check_rows(config, mesh)
    base = resolve_model(config.model.path, config.model.revision)
    model = load_model_config(base)
    tokenizer = load_tokenizer(base)
    learned, heldout = _load_data(config, tokenizer, model, console)
    steps = config.steps or math.ceil(len(learned) * config.epochs / config.batch.size)
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(config.optimizer, steps)
        shapes = abstract_params(model)
        shardings = state_shardings(
            mesh, optimizer, shapes, param_shardings(mesh, shapes, logical_axes(model))
        )
        initial = _initial_state(model, base, optimizer, shardings)
        run.start(config)
        checkpoints = Checkpoints(run.checkpoints, config.checkpoint.keep)
        try:
            if checkpoints.latest_step is None:
                state = initial()
            else:
                state = checkpoints.restore(abstract_state(jax.eval_shape(initial), shardings))
            done = int(state.step)
            run.forget_after(done)
            parts = _parts(config, model, tokenizer, mesh, optimizer, shardings, learned, heldout)
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
            export(model, state.params, base, run.export, config.export_dtype)
    print_report(run, console)


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
