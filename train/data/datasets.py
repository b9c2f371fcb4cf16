"""From the config's data section to training and evaluation data."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from ..buckets.fetch import cache_path
from ..config import Config
from ..config.data import DataSection, Source
from ..errors import DataError, UserError
from ..files import expand
from .chat import RecordReader
from .pairs import PairStore
from .python_stdlib import NAME, PREFERENCES, load_stdlib
from .sources import ListSource, RecordSource, is_hub_name, open_source
from .splits import Datasets, Split, TokenisedSource, make_named_splits, make_splits
from .token_store import Advance, open_store
from .validate import check_tokenizer, find_faults, find_pair_faults

STDLIB = (NAME, PREFERENCES)


@dataclass(frozen=True)
class DataContext:
    """What data is built with, beside the config's data section.

    Attributes:
      vocab_size: the model's.
      cache: the folder of tokenised data.
      pairs: whether preference pairs are trained on, and not single answers.
      eval_sets: the sources of more evaluation data by its name.
      now: what chat templates read of the time.
      console: where progress is shown, if it is a terminal.
    """

    tokenizer: Any
    vocab_size: int
    seed: int
    cache: Path
    console: Console | None = None
    now: datetime | None = None
    pairs: bool = False
    eval_sets: Mapping[str, Sequence[Source]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, config: Config, tokenizer: Any, vocab_size: int, console: Console, now: datetime | None
    ) -> "DataContext":
        """The context of a config's data."""
        return cls(
            tokenizer,
            vocab_size,
            config.seed,
            cache_path(config.cache),
            console,
            now,
            config.objective.is_preference,
            {
                name: [config.data.fill(source) for source in sources]
                for name, sources in config.evaluation.data.items()
            },
        )


def build_datasets(data: DataSection, context: DataContext) -> Datasets:
    """Builds the training data and, unless eval_fraction is 0, the evaluation data.

    Evaluation data is what `eval` or `eval_split` names. Otherwise it is split off: from the
    standard library by module, from other data by a seeded hash of the example, so that equal
    examples are in the same split.

    Raises:
      UserError: if data cannot be loaded or used, or a split has none.
    """
    sources = _load_checked(data, context)
    return make_splits(data, sources, context.seed, context.cache)


def build_evals(data: DataSection, context: DataContext) -> dict[str, Split]:
    """Builds the evaluation data alone by its name, where the training data is a stream."""
    sources = _load_checked(data, context)
    return make_named_splits(data, sources, context.seed, context.cache)


def _load_checked(data: DataSection, context: DataContext) -> list[TokenisedSource]:
    check_tokenizer(context.tokenizer, context.vocab_size)
    sources = load_sources(data, context)
    stores = [source.store for source in sources]
    faults = find_faults(data, stores, context.vocab_size)
    if not context.pairs:
        faults += find_pair_faults(stores)
    if faults:
        raise DataError(faults) if data.on_error == "report" else UserError(faults[0])
    return sources


def load_sources(data: DataSection, context: DataContext) -> list[TokenisedSource]:
    """Tokenises every source; training data that is streamed is left out."""
    _check_eval_sources(data, data.eval_sources(), "data.eval")
    for name, named in context.eval_sets.items():
        _check_eval_sources(data, named, f"evaluation.data.{name}")
    opened = [(*source, "") for source in _open_sources(data)]
    for name, named in context.eval_sets.items():
        opened += [(*source, name) for source in _open_eval_sources(data, named)]
    loaded = []
    with _progress(sum(len(records) for _, records, *_ in opened), context.console) as advance:
        for source, records, is_eval, eval_set in opened:
            reader = RecordReader.of(source, data, context.now)
            stop = data.on_error == "stop"
            store = open_store(records, context.tokenizer, reader, context.cache, advance, stop)
            kind = PairStore.of(store) if context.pairs else store
            loaded.append(TokenisedSource(source, kind, is_eval, eval_set))
    return loaded


def _open_sources(data: DataSection) -> Iterator[tuple[Source, RecordSource, bool | None]]:
    """Each source with whether it is evaluation data (None: it is still to be divided)."""
    eval_sources = data.eval_sources()
    undivided = None if data.eval_fraction and not eval_sources else False
    for source in () if data.streaming else data.train_sources():
        if source.path not in STDLIB:
            yield source, _open(source), undivided
        else:  # The standard library is divided by module.
            halves = load_stdlib(0 if eval_sources else data.eval_fraction, source.path)
            for records, is_eval in zip(halves, (False, True), strict=True):
                if records:
                    yield source, ListSource(records), is_eval
    yield from _open_eval_sources(data, eval_sources)


def _open_eval_sources(
    data: DataSection, eval_sources: Sequence[Source]
) -> Iterator[tuple[Source, RecordSource, bool | None]]:
    """Each source of evaluation data."""
    for source in eval_sources:
        if source.path not in STDLIB:
            yield source, _open(source), True
        else:
            records = load_stdlib(data.eval_fraction, source.path)[1]
            if not records:
                raise UserError("data: no evaluation data is left; change data.eval_fraction")
            yield source, ListSource(records), True


def _open(source: Source) -> RecordSource:
    return open_source(source.path, source.split or "train", source.revision)


def _check_eval_sources(data: DataSection, eval_sources: Sequence[Source], key: str) -> None:
    trained = {(source.path, source.split) for source in data.train_sources()}
    for source in eval_sources:
        named = key != "data.eval"
        if data.eval_split is not None and not named and not _has_splits(source.path):
            raise UserError(
                f"data.eval_split: {source.path} has no splits; name evaluation data in data.eval"
            )
        if (source.path, source.split) in trained:
            raise UserError(
                f"{key}: {source.path} is trained on; "
                "name other data, or leave it out to split some off"
            )


def _has_splits(path: str) -> bool:
    return path not in STDLIB and (is_hub_name(path) or expand(path).is_dir())


@contextmanager
def _progress(total: int, console: Console | None) -> Iterator[Advance]:
    visible = console is not None and console.is_terminal
    with Progress(console=console, transient=True, disable=not visible) as progress:
        task = progress.add_task("tokenising", total=total)
        yield lambda count: progress.advance(task, count)
