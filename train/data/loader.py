"""A run's data: training batches with a position that is saved, and evaluation batches."""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import jax
from jax.sharding import Mesh
from rich.console import Console

from ..config import Config
from ..config.base import MOST
from ..errors import UserError
from ..step import Batch
from .datasets import DataContext, build_datasets, build_evals
from .prefetch import local_rows, microbatch_rows, prefetch, row_group, to_devices
from .prompts import DataPrompt, first_prompts
from .reference import ReferencePass, ReferenceValues, open_values
from .splits import Split
from .stream import Stream, preview
from .stream_records import Shard
from .summary import describe_sources
from .validate import check_epoch

TrainBatch = tuple[Batch, int]  # An update's microbatches [N, B/N, T], and the tokens in them.
OpenBatches = Callable[[], AbstractContextManager[Iterator[Batch]]]


class Positioned(Protocol):
    """An iterator over training batches with a position, as grain's are."""

    def __next__(self) -> TrainBatch: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class Loader(Iterator[TrainBatch]):
    """Training batches on the devices, computed ahead, from the position that it is set to.

    Orbax saves the position beside the training state, and restores it with it: for indexed data
    the number of updates done, which any number of processes can resume from; for a stream the
    state of grain's iterators, which each process saves for itself.

    Attributes:
      describe: updates done → where the examples of the next update are from, if that is known.
    """

    def __init__(
        self, batches: Positioned, describe: Callable[[int], Sequence[str]] = lambda _: ()
    ) -> None:
        self._batches, self.describe = batches, describe

    def __next__(self) -> TrainBatch:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        """The position after the batches that were taken."""
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position of `get_state`."""
        self._batches.set_state(state)

    async def save(self, directory: Any) -> Awaitable[None]:
        """Saves the position; orbax calls it (`ocp.StatefulCheckpointable`)."""
        state = json.dumps(self.get_state())

        async def write() -> None:
            folder = await directory.await_creation()
            await asyncio.to_thread(_state_file(folder).write_text, state)

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        """Restores the position; orbax calls it."""

        async def read() -> None:
            file = _state_file(directory)
            if not file.exists():  # Saved by fewer processes.
                file = _state_file(directory, 0)
            self.set_state(json.loads(await asyncio.to_thread(file.read_text)))

        return read()

    def close(self) -> None:
        """Ends the threads that compute ahead."""
        self._batches.close()


def _state_file(folder: Any, process: int | None = None) -> Any:
    return folder / f"process_{jax.process_index() if process is None else process}.json"


@dataclass(frozen=True)
class RunData:
    """What a run trains on and is evaluated on.

    Attributes:
      steps: updates in all.
      loader: the training batches, one an update.
      eval_batches: for evaluation data by its name, "" without one: opens an iterator over all of
        it once, in batches [B, T].
      prompts: some prompts in the data, the evaluation data's if there are any.
      summary: a line on the training data, and one on the evaluation data.
      digests: of the training data and the evaluation data; equal for equal data. Of a stream's
        files, pieces are digested.
      named_digests: likewise of evaluation data with a name.
      passes: what a reference computes of each split before the first batch is taken.
      stream: the stream that the loader reads, if it does.
    """

    steps: int
    loader: Loader
    eval_batches: Mapping[str, OpenBatches]
    prompts: Sequence[DataPrompt] = ()
    summary: Sequence[str] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    named_digests: Mapping[str, str] = field(default_factory=dict)
    passes: Sequence[ReferencePass] = ()
    stream: Stream | None = None


def open_data(
    config: Config,
    tokenizer: Any,
    vocab_size: int,
    mesh: Mesh,
    console: Console,
    now: datetime | None = None,
    reference_digest: str = "",
) -> RunData:
    """Opens the data that the config names, and prints how much of it is used.

    Args:
      now: what chat templates read of the time; None: the time.
      reference_digest: the digest of the reference whose log-probabilities batches have; "" without
        one.

    Raises:
      UserError: if data cannot be used, or is less than a batch.
    """
    context = DataContext.of(config, tokenizer, vocab_size, console, now)
    if config.data.streaming:
        return _open_stream(config, context, mesh, console)
    return _open_indexed(config, context, mesh, console, reference_digest)


def _open_indexed(
    config: Config,
    context: DataContext,
    mesh: Mesh,
    console: Console,
    reference_digest: str,
) -> RunData:
    datasets = build_datasets(config.data, context)
    _print_summary(datasets.splits, console)
    size, num_microbatches = config.batch.size, config.batch.num_microbatches
    passes = [
        _reference_pass(config, split, mesh, reference_digest)
        for split in datasets.splits
        if reference_digest
    ]
    values = [each.values for each in passes]
    batches = datasets.train.batches(size, config.seed, *values[:1])
    check_epoch(batches.rows_per_epoch, size)
    local = microbatch_rows(mesh, num_microbatches, size // num_microbatches)
    steps = config.steps or math.ceil(batches.rows_per_epoch * config.epochs / size)
    if steps > MOST:
        raise UserError(
            f"epochs={config.epochs} is {steps:,} updates; at most {MOST:,} are counted"
        )
    iterator = prefetch(
        lambda step: (batches.batch(step, local), batches.num_tokens(step)),
        lambda batch: (to_devices(batch[0], mesh, num_microbatches), batch[1]),
        steps,
    )
    digests = {datasets.train.name: datasets.train.digest} | _digests(datasets.evals)
    of_evals: Sequence[ReferenceValues | None] = values[1:] or [None] * len(datasets.evals)
    eval_batches = {
        name: _eval_batches(config, split, mesh, reference)
        for (name, split), reference in zip(datasets.evals.items(), of_evals, strict=True)
    }
    prompts = _prompts(config, next(iter(datasets.evals.values()), datasets.train))
    summary = [str(split) for split in datasets.splits]
    loader = Loader(iterator, lambda step: [*map(datasets.train.where, batches.examples(step))])
    named = _digests(datasets.evals, named=True)
    return RunData(steps, loader, eval_batches, prompts, summary, digests, named, passes)


def _digests(evals: Mapping[str, Split], *, named: bool = False) -> dict[str, str]:
    return {split.name: split.digest for key, split in evals.items() if bool(key) == named}


def _reference_pass(config: Config, split: Split, mesh: Mesh, digest: str) -> ReferencePass:
    batches = _eval_batches(config, split, mesh)
    rows = split.batches(_eval_rows(config), config.seed)
    return ReferencePass(split.name, open_values(config, split, digest), rows, batches)


def _open_stream(config: Config, context: DataContext, mesh: Mesh, console: Console) -> RunData:
    evals = build_evals(config.data, context)
    _print_summary([*evals.values()], console, preview(config.data, context))
    num_microbatches = config.batch.num_microbatches
    num_rows = config.batch.size // num_microbatches
    shard = Shard(*row_group(mesh, num_rows))
    local = microbatch_rows(mesh, num_microbatches, num_rows)
    stream = Stream(config.data, context, num_rows=len(local), shard=shard)

    def put(arrays: dict[str, Any]) -> TrainBatch:
        num_tokens = int(arrays.pop("num_tokens").sum()) * shard.count
        return to_devices(arrays, mesh, num_microbatches), num_tokens

    assert config.steps is not None, "the config requires steps for a stream"
    loader = Loader(stream.prefetch(put))
    return RunData(
        config.steps,
        loader,
        {name: _eval_batches(config, split, mesh) for name, split in evals.items()},
        _prompts(config, next(iter(evals.values()), None)),
        digests={"training data": stream.digest()} | _digests(evals),
        named_digests=_digests(evals, named=True),
        stream=stream,
    )


def _prompts(config: Config, split: Split | None) -> Sequence[DataPrompt]:
    """Prompts to complete where the config names none; a completion fits in a row with each."""
    if split is None or config.evaluation.prompts is not None:
        return ()
    return first_prompts(split, config.data.max_length - config.evaluation.max_new_tokens)


def _eval_rows(config: Config) -> int:
    """Rows of an evaluation batch: those of a microbatch."""
    return config.batch.size // config.batch.num_microbatches


def _print_summary(splits: Sequence[Split], console: Console, first: Sequence[str] = ()) -> None:
    """How the data was understood, and how much of it is used."""
    parts = [part for split in splits for part in split.sources]
    understood = describe_sources((part.source.path, part.store) for part in parts)
    for line in [*first, *understood, *map(str, splits)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _eval_batches(
    config: Config, split: Split, mesh: Mesh, reference: ReferenceValues | None = None
) -> OpenBatches:
    num_rows = _eval_rows(config)
    batches = split.batches(num_rows, config.seed, reference)
    local = local_rows(mesh, num_rows)
    return lambda: closing(
        prefetch(
            lambda number: batches.eval_batch(number, local),
            lambda arrays: to_devices(arrays, mesh),
            batches.num_eval_batches,
        )
    )
