"""Supervised fine-tuning: puts model, data, mesh and optimizer together and runs the loop."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from .checkpoint import Checkpoints
from .config import Config, make_config
from .data.loader import RunData, open_data
from .data.prompts import prompt_ids
from .data.rows import keep_rows
from .distributed.processes import check_equal, main_process_first
from .errors import UserError
from .flops import peak_tokens_per_s
from .generate import Sampling, check_prompts, complete
from .hf.card import model_card
from .hf.ends import find_ends
from .hf.export import export
from .hf.hub import resolve_model
from .hf.load import load_params
from .hf.tokenizer import load_tokenizer
from .loop import Cadence, Parts, train
from .model import ModelConfig, Params, load_model_config
from .observe.progress import Display
from .observe.report import print_report
from .optimizer import make_schedule
from .program import Program, keep_compiled
from .run import Run
from .sharding import check_rows, make_mesh
from .step import TrainState, jit_eval_step

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
    run = Run(Path(config.run))
    run.check(config, resume)
    if run.is_finished(config):
        print_report(run, console)
        return run
    keep_compiled(config)
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
    completer = _Completer(config, model, tokenizer, ends.ids)
    now = run.clock()
    completer.add_prompts(config.evaluation.prompts, now)
    with main_process_first("tokenised data", DATA_TIMEOUT):
        data = open_data(config, tokenizer, model.vocab_size, mesh, console, now)
    settings = config.model_dump(exclude={"cache"})
    check_equal(
        "the config, the data or the run's folder",
        f"{settings} {data.digest} {run.checkpoints.is_dir()}",
    )
    completer.add_ids(data.prompts)
    program = Program(config, model, mesh, data.steps)
    with jax.set_mesh(mesh), closing(data.loader):
        state = _train(program, base, completer, data, run, console)
        if data.stream is not None:
            console.print(str(data.stream), highlight=False, markup=False, soft_wrap=True)
        if int(state.step) < data.steps:
            console.print(f"stopped and saved at step {int(state.step)}; go on with --resume")
            return run
        if config.export_dtype:
            export(
                model,
                state.params,
                base,
                run.export,
                config.export_dtype,
                tokenizer=tokenizer,
                card=model_card(run.name, config, run.records),
                replace=True,
            )
    print_report(run, console)
    return run


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
    folder = Path(tree.get("cache", Config.model_fields["cache"].default)).expanduser() / "rows"
    for key, part in in_memory.items():
        if key in tree["data"]:
            raise UserError(f"data.{key} is set and rows are given; give one of them")
        tree["data"][key] = str(keep_rows(part, folder))
    return make_config(tree)


def _train(
    program: Program,
    base: Path,
    completer: "_Completer",
    data: RunData,
    run: Run,
    console: Console,
) -> TrainState:
    """Begins the run or goes on with it, up to its last update or a request to stop."""
    config = program.config
    # Weights that cannot be read are reported before the run's folder is made.
    state = None if run.checkpoints.is_dir() else _initial_state(program, base)
    run.start(config, data.digest)
    with Checkpoints(run.checkpoints, config.checkpoint.keep) as checkpoints:
        if checkpoints.latest_step is not None:
            state = checkpoints.restore(program.abstract_state(), data.loader)
        elif state is None:
            state = _initial_state(program, base)
        done = int(state.step)
        run.forget_after(done or -1)  # What comes before the first update is repeated.
        if done == 0 and data.summary:
            run.log({"step": 0, "data": list(data.summary)})
        cadence = Cadence(
            data.steps, config.log_every, config.evaluation.every, config.checkpoint.every
        )
        parts = _make_parts(program, completer, data)
        with Display(data.steps, done, console) as display:
            return train(state, parts, checkpoints, cadence, run, display)


def _initial_state(program: Program, base: Path) -> TrainState:
    """Pre-trained weights and a fresh optimizer state, created in place on the mesh."""
    shardings = program.shardings
    params = load_params(base, program.model, shardings.params)
    opt_state = jax.jit(program.optimizer.init, out_shardings=shardings.opt_state)(params)
    return TrainState(jax.device_put(np.int32(0), shardings.step), params, opt_state)


class _Completer:
    """Completes the run's prompts."""

    def __init__(
        self,
        config: Config,
        model: ModelConfig,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Sequence[int],
    ) -> None:
        self._prompts: list[str] = []
        self._ids: list[Sequence[int]] = []
        self._sampling = Sampling(config.evaluation.max_new_tokens)
        self._dtype = config.model.compute_dtype
        self._model, self._tokenizer, self._stop_ids = model, tokenizer, stop_ids

    def add_prompts(self, prompts: Sequence[str] | None, now: datetime) -> None:
        """Adds user turns.

        Args:
          now: what chat templates read of the time.

        Raises:
          UserError: if the model cannot complete one of them.
        """
        ids = [prompt_ids(self._tokenizer, prompt, now) for prompt in prompts or ()]
        check_prompts(self._model, ids, self._sampling)
        self._prompts += prompts or ()
        self._ids += ids

    def add_ids(self, prompts: Sequence[Sequence[int]]) -> None:
        """Adds prompts of the data, as tokens; they are recorded as text."""
        self._ids += prompts
        self._prompts += [self._tokenizer.decode(ids, skip_special_tokens=True) for ids in prompts]

    def __call__(self, params: Params) -> list[tuple[str, str]]:
        """The prompts with their completions."""
        if not self._ids:
            return []
        with jax.transfer_guard("allow"):  # Tokens go to the devices and come back.
            completions = complete(
                self._model,
                params,
                self._tokenizer,
                self._ids,
                self._sampling,
                self._stop_ids,
                self._dtype,
            )
        return list(zip(self._prompts, completions, strict=True))


def _make_parts(program: Program, completer: _Completer, data: RunData) -> Parts:
    """The loop's parts, bound to this run."""
    config, model = program.config, program.model
    devices = program.mesh.devices.flatten()
    schedule = make_schedule(config.optimizer, data.steps)

    def learning_rate(done: int) -> float:
        with jax.transfer_guard("allow"):  # The schedule is computed from a number of the host's.
            return float(np.asarray(schedule(done)))

    return Parts(
        loader=data.loader,
        train_step=program.train_step(),
        evaluate=_make_evaluate(program, data),
        sample=completer,
        learning_rate=learning_rate,
        peak_tokens_per_s=peak_tokens_per_s(
            model, config.data.max_length, devices[0], len(devices)
        ),
    )


def _make_evaluate(program: Program, data: RunData) -> Callable[[optax.Params], dict[str, float]]:
    """The means of the objective's loss and metrics over all evaluation data; {} without any."""
    eval_step = jit_eval_step(program.objective, program.mesh, program.shardings.params)

    def evaluate(params: optax.Params) -> dict[str, float]:
        if data.eval_batches is None:
            return {}
        totals: Counter[str] = Counter()
        with data.eval_batches() as batches:
            for batch in batches:
                sums = jax.device_get(eval_step(params, batch))
                figures = {"weight": sums.weight, "loss": sums.loss} | sums.metrics
                totals.update({name: float(value) for name, value in figures.items()})
        weight = totals.pop("weight")
        return {name: total / weight for name, total in totals.items()}

    return evaluate
