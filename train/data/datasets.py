"""From the config's data section to the rows that are trained on and held out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from ..config.data import DataSection, Source
from ..errors import DataError, UserError
from .python_stdlib import NAME as STDLIB
from .python_stdlib import load_stdlib
from .sources import Listed, Rows, is_hub_name, open_rows
from .splits import Datasets, Loaded, Side, divide, held_out_side, refuse_pairs
from .token_store import Advance, Reading, store


def build_datasets(
    data: DataSection,
    tokenizer: Any,
    *,
    vocab_size: int,
    seed: int,
    cache: Path,
    console: Console | None = None,
) -> Datasets:
    """What is trained on and, unless eval_fraction is 0, held out.

    Held-out data is what `eval` or `eval_split` names. Otherwise it is split off: of the standard
    library by module, of other data by a seeded hash of the example, so that equal examples are on
    the same side.

    Args:
      vocab_size: of the model.
      cache: the folder of tokenised data.
      console: where progress is shown, if it is a terminal.

    Raises:
      UserError: where data cannot be loaded or used, or a side has none.
    """
    check_tokenizer(tokenizer, vocab_size)
    loaded = load(data, tokenizer, cache, console)
    _refuse(data, loaded, vocab_size)
    return divide(data, loaded, seed, cache)


def build_held_out(
    data: DataSection,
    tokenizer: Any,
    *,
    vocab_size: int,
    seed: int,
    cache: Path,
    console: Console | None = None,
) -> Side | None:
    """What is held out, where the training data is a stream; the arguments are the same."""
    check_tokenizer(tokenizer, vocab_size)
    loaded = load(data, tokenizer, cache, console, streamed=True)
    _refuse(data, loaded, vocab_size)
    return held_out_side(data, loaded, seed, cache) if loaded else None


def _refuse(data: DataSection, loaded: Sequence[Loaded], vocab_size: int) -> None:
    faults = find_faults(data, loaded, vocab_size)
    if faults:
        raise DataError(faults) if data.on_error == "report" else UserError(faults[0])
    refuse_pairs(loaded)


def load(
    data: DataSection,
    tokenizer: Any,
    cache: Path,
    console: Console | None = None,
    *,
    streamed: bool = False,
) -> list[Loaded]:
    """Every source's examples, tokenised; but for the training data where that is streamed."""
    opened = list(_open(data, streamed))
    made = []
    with _progress(sum(len(rows) for _, rows, _ in opened), console) as advance:
        for source, rows, held_out in opened:
            reading = Reading(source.format, source.columns or None, data.loss_on)
            stop = data.on_error == "stop"
            made.append(
                Loaded(source, store(rows, tokenizer, reading, cache, advance, stop), held_out)
            )
    return made


def _open(data: DataSection, streamed: bool) -> Iterator[tuple[Source, Rows, bool | None]]:
    apart = data.eval_sources()
    trained = {(source.path, source.split) for source in data.train_sources()}
    for source in apart:
        if data.eval_split is not None and not _has_splits(source.path):
            raise UserError(
                f"data.eval_split: {source.path} has no splits; name held-out data in data.eval"
            )
        if (source.path, source.split) in trained:
            raise UserError(
                f"data.eval: {source.path} is trained on; "
                "name other data, or leave it out to split some off"
            )
    for source in () if streamed else data.train_sources():
        if source.path != STDLIB:
            rows = open_rows(source.path, source.split or "train", source.revision)
            yield source, rows, False if apart or data.eval_fraction == 0 else None
        else:  # It is split by module.
            sides = load_stdlib(0 if apart else data.eval_fraction)
            for side, held_out in zip(sides, (False, True), strict=True):
                if side:
                    yield source, Listed(side), held_out
    for source in apart:
        if source.path == STDLIB:
            held = load_stdlib(data.eval_fraction)[1]
            if not held:
                raise UserError("data: nothing is left to hold out; change data.eval_fraction")
            yield source, Listed(held), True
        else:
            yield source, open_rows(source.path, source.split or "train", source.revision), True


def _has_splits(path: str) -> bool:
    return path != STDLIB and (is_hub_name(path) or Path(path).expanduser().is_dir())


@contextmanager
def _progress(total: int, console: Console | None) -> Iterator[Advance]:
    shown = console is not None and console.is_terminal
    with Progress(console=console, transient=True, disable=not shown) as progress:
        task = progress.add_task("tokenising", total=total)
        yield lambda count: progress.advance(task, count)


def check_tokenizer(tokenizer: Any, vocab_size: int) -> None:
    """Sees that the model has a row for every token.

    Raises:
      UserError: otherwise.
    """
    highest = max(tokenizer.get_vocab().values())
    if highest >= vocab_size:
        raise UserError(
            f"the tokenizer has tokens up to {highest}, and the model's vocabulary ends at "
            f"{vocab_size - 1}; use the tokenizer that belongs to the model"
        )


def find_faults(data: DataSection, loaded: Sequence[Loaded], vocab_size: int) -> list[str]:
    """What keeps rows from being used, each with its place."""
    faults = []
    for each in loaded:
        store, index = each.store, each.store.index
        found = list(store.faults)
        for record, highest in index[index["highest"] >= vocab_size][["record", "highest"]]:
            found.append(
                (
                    int(record),
                    f"has token {highest}, and the model's vocabulary ends at {vocab_size - 1}; "
                    "use the tokenizer that belongs to the model",
                )
            )
        if data.overlong == "error":
            for record, length in index[index["length"] > data.max_length][["record", "length"]]:
                found.append(
                    (
                        int(record),
                        f"{length:,} tokens, over data.max_length {data.max_length:,}; "
                        "raise it, or set data.overlong to drop or truncate",
                    )
                )
        faults += [f"{store.where(record)}: {text}" for record, text in sorted(found)]
    return faults
