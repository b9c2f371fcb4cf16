"""Supervised fine-tuning: puts model, data, mesh and optimizer together and runs the loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from .checkpoint import Checkpoints
from .config import Config
from .data.loader import Supply, make_supply
from .distributed.processes import check_equal, main_process_first
from .flops import peak_tokens_per_s
from .generate import Sampling, complete
from .hf.export import export
from .hf.hub import resolve_model
from .hf.load import load_params
from .hf.tokenizer import load_tokenizer, prompt_ids
from .loop import Cadence, Parts, train
from .model import load_model_config
from .observe.progress import Display
from .observe.report import print_report
from .optimizer import make_schedule
from .program import Program, keep_compiled
from .run import Run
from .sharding import check_rows, make_mesh
from .step import TrainState, jit_eval_step

# Seconds in which process 0 must have tokenised the data, while the others wait.
DATA_TIMEOUT = 6 * 3600


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
    keep_compiled(config)
    mesh = make_mesh(**config.mesh.model_dump())
    rows = config.batch.size // config.batch.num_microbatches
    check_rows(mesh, rows, config.data.max_length)
    base = resolve_model(config.model.path, config.model.revision)
    model = load_model_config(base)
    tokenizer = load_tokenizer(base, config.model.chat_template)
    with main_process_first("tokenised data", DATA_TIMEOUT):
        supply = make_supply(config, tokenizer, model.vocab_size, mesh, console)
    said = config.model_dump(exclude={"cache"})
    seen = f"{said} {supply.digest} {run.checkpoints.is_dir()}"
    check_equal("the config, the data or the run's folder", seen)
    steps = supply.steps
    program = Program(config, model, mesh, steps)
    with jax.set_mesh(mesh):
        initial = _initial_state(program, base)
        # Weights that cannot be read are told before the run's folder is there.
        state = None if run.checkpoints.is_dir() else initial()
        run.start(config)
        checkpoints = Checkpoints(run.checkpoints, config.checkpoint.keep)
        try:
            if checkpoints.latest_step is not None:
                state = checkpoints.restore(program.abstract_state())
            elif state is None:
                state = initial()
            done = int(state.step)
            run.forget_after(done or -1)  # What comes before the first update is done again.
            parts = _parts(program, tokenizer, supply, checkpoints)
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


def _initial_state(program: Program, base: Path) -> Callable[[], TrainState]:
    """Pre-trained weights and a fresh optimizer state, made in place on the mesh."""

    def initial() -> TrainState:
        shardings = program.shardings
        params = load_params(base, program.model, shardings.params)
        opt_state = jax.jit(program.optimizer.init, out_shardings=shardings.opt_state)(params)
        return TrainState(jax.device_put(np.int32(0), shardings.step), params, opt_state)

    return initial


def _parts(program: Program, tokenizer: Any, supply: Supply, checkpoints: Checkpoints) -> Parts:
    """The loop's calls, bound to this run."""
    config, model = program.config, program.model
    devices = program.mesh.devices.flatten()
    eval_step = jit_eval_step(program.loss, program.mesh, program.shardings.params)

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
        made = complete(model, params, tokenizer, ids, sampling, config.model.compute_dtype)
        return list(zip(prompts, made, strict=True))

    return Parts(
        batches=lambda start, stop: supply.batches(start, stop, checkpoints.attach_stream),
        train_step=program.train_step(),
        evaluate=evaluate,
        sample=sample,
        learning_rate=make_schedule(config.optimizer, supply.steps),
        peak_tokens_per_s=peak_tokens_per_s(
            model, config.data.max_length, devices[0], len(devices)
        ),
    )
