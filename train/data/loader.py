"""What a run learns from and is measured on, as batches on the mesh's devices."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from rich.console import Console

from ..config import Config
from ..errors import UserError
from .datasets import build_datasets, build_held_out
from .prefetch import local_rows, microbatch_rows, place, prefetched, row_groups
from .splits import Side
from .stream import Share, Stream

# Given a grain iterator: sets it to where it was when the run was saved, and saves it from then on.
Attach = Callable[[Any], None]


@dataclass(frozen=True)
class Supply:
    """A run's data; every iterator works ahead and is closed by its context."""

    steps: int
    # (updates done, updates in all) -> each update's microbatches, and the tokens in them
    batches: Callable[[int, int, Attach], AbstractContextManager[Any]]
    held_out: Callable[[], AbstractContextManager[Any]] | None  # All of it once, [B, T] each.
    digest: str = ""  # Equal for equal data, where it is known beforehand.


def make_supply(
    config: Config, tokenizer: Any, vocab_size: int, mesh: Mesh, console: Console
) -> Supply:
    """Reads the data that the config names, and prints what became of it.

    Raises:
      UserError: where data cannot be used, or is less than a batch.
    """
    make = _streamed if config.data.streaming else _indexed
    return make(config, tokenizer, vocab_size, mesh, console)


def _indexed(
    config: Config, tokenizer: Any, vocab_size: int, mesh: Mesh, console: Console
) -> Supply:
    made = build_datasets(config.data, tokenizer, **_where(config, vocab_size, console))
    for side in made.sides:
        _say(side, console)
    size, pieces = config.batch.size, config.batch.num_microbatches
    training = made.train.batches(size, config.seed)
    rows = training.rows_in_epoch
    if rows < size:
        raise UserError(
            f"data.train: an epoch has {rows} rows, fewer than a batch of {size}; "
            "lower batch.size or add data"
        )
    mine = microbatch_rows(mesh, pieces, size // pieces)

    def batches(start: int, stop: int, _: Attach) -> AbstractContextManager[Any]:
        return prefetched(
            lambda step: (training.batch(step, mine), training.num_tokens(step)),
            lambda made: (place(made[0], mesh, pieces), made[1]),
            start,
            stop,
        )

    steps = config.steps or math.ceil(rows * config.epochs / size)
    digest = " ".join(side.digest for side in made.sides)
    return Supply(steps, batches, _held_out(config, made.held_out, mesh), digest)


def _streamed(
    config: Config, tokenizer: Any, vocab_size: int, mesh: Mesh, console: Console
) -> Supply:
    side = build_held_out(config.data, tokenizer, **_where(config, vocab_size, console))
    if side is not None:
        _say(side, console)
    pieces = config.batch.num_microbatches
    mine = microbatch_rows(mesh, pieces, config.batch.size // pieces)
    share = Share(*row_groups(mesh, config.batch.size // pieces))
    stream = Stream(
        config.data,
        tokenizer,
        rows=len(mine),
        seed=config.seed,
        share=share,
    )

    def put(arrays: Any) -> Any:
        used = int(arrays.pop("used").sum()) * share.count
        return place(arrays, mesh, pieces), used

    @contextmanager
    def batches(start: int, stop: int, attach: Attach) -> Iterator[Any]:
        with stream.prefetched(put, attach) as ahead:
            yield ahead
        console.print(str(stream), highlight=False, markup=False, soft_wrap=True)

    assert config.steps is not None, "the config sees to it"
    return Supply(config.steps, batches, _held_out(config, side, mesh))


def _where(config: Config, vocab_size: int, console: Console) -> dict[str, Any]:
    cache = Path(config.cache).expanduser()
    return {
        "vocab_size": vocab_size,
        "seed": config.seed,
        "cache": cache,
        "console": console,
    }


def _say(side: Side, console: Console) -> None:
    console.print(str(side), highlight=False, markup=False, soft_wrap=True)


def _held_out(
    config: Config, side: Side | None, mesh: Mesh
) -> Callable[[], AbstractContextManager[Any]] | None:
    if side is None:
        return None
    rows = config.batch.size // config.batch.num_microbatches
    batches, mine = side.batches(rows, config.seed), local_rows(mesh, rows)
    return lambda: prefetched(
        lambda number: batches.eval_batch(number, mine),
        lambda arrays: place(arrays, mesh),
        0,
        batches.num_eval_batches,
    )
