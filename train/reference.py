"""The reference of preference learning: its log-probabilities, computed before training."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from .config import Config
from .data.digest import digest_files
from .data.reference import ReferencePass
from .distributed.processes import all_true, barrier, is_main_process
from .errors import UserError
from .hf.hub import resolve_model
from .hf.load import load_params
from .hf.tokenizer import load_tokenizer
from .model import ComputeOptions, load_model_config
from .objective.preference import answer_logprobs
from .program import Program
from .sharding import batch_sharding, replicated
from .step import Batch

_TIMEOUT = 600.0  # Seconds in which process 0 must have written the values.
_IN_FLIGHT = 2  # Batches that are computed while the values of another one are copied.


@dataclass(frozen=True)
class Reference:
    """A reference model, or none.

    Attributes:
      folder: where its weights are.
      digest: equal for equal weights and architectures; "" if there is no reference.
    """

    folder: Path
    digest: str


def find_reference(config: Config, base: Path, tokenizer: Any) -> Reference:
    """The reference of the config's objective, if that has one.

    Args:
      base: the folder of the model that is trained.
      tokenizer: that model's.

    Raises:
      UserError: if the reference cannot be found or has other tokens.
    """
    objective = config.objective
    if not objective.has_reference:
        return Reference(base, "")
    name = getattr(objective, "reference", None)
    folder = base if name is None else resolve_model(name)
    if name is not None and load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"objective.reference: {name} has another tokenizer than {config.model.path}; "
            "name a model with the same one"
        )
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return Reference(folder, digest_files(files))


def compute_reference(
    program: Program, reference: Reference, passes: Sequence[ReferencePass], console: Console
) -> None:
    """Computes and stores what is not stored yet, in one pass over the data on the whole mesh.

    The reference's weights are in memory for that time alone. All processes call it together.

    Raises:
      UserError: if the weights cannot be read.
    """
    missing = [each for each in passes if not all_true(each.values.exist)]
    if not missing:
        return
    model = load_model_config(reference.folder)
    program = replace(program, model=model)
    shardings = program.weight_shardings
    params = load_params(reference.folder, model, shardings, program.abstract_weights)
    section = program.config.model
    options = ComputeOptions(section.compute_dtype, "none", program.attention)
    logprobs = jax.jit(
        partial(answer_logprobs, model, options),
        in_shardings=(shardings, batch_sharding(program.mesh)),
        out_shardings=replicated(program.mesh),
    )
    visible = console.is_terminal
    with Progress(console=console, transient=True, disable=not visible) as progress:
        for each in missing:
            name = f"reference, {each.name}"
            task = progress.add_task(name, total=each.rows.num_eval_batches)
            values = each.values.empty()
            for number, result in _results(each, partial(logprobs, params)):
                for member, row, span in each.rows.eval_places(number):
                    each.values.put(values, member, result[row][:, span])
                progress.advance(task)
            _store(each, values)


def _results(
    each: ReferencePass, logprobs: Callable[[Batch], jax.Array]
) -> Iterator[tuple[int, np.ndarray]]:
    """The log-probabilities of each batch, on the host; others are computed meanwhile."""
    pending: deque[jax.Array] = deque()
    number = 0
    with each.batches() as batches:
        for batch in batches:
            pending.append(logprobs(batch))
            if len(pending) > _IN_FLIGHT:
                yield number, np.asarray(pending.popleft())
                number += 1
    for result in pending:
        yield number, np.asarray(result)
        number += 1


def _store(each: ReferencePass, values: np.ndarray) -> None:
    """Stores values, in each place where processes look for them."""
    if is_main_process():
        each.values.write(values)
    barrier(f"reference of the {each.name}", _TIMEOUT)
    if not each.values.exist:  # The cache is this process's own.
        each.values.write(values)
