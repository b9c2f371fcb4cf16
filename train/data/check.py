"""What a run would learn from, looked at before it is paid for."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..config import Config
from ..errors import DataError, UserError
from ..hf.hub import resolve_model
from ..hf.tokenizer import load_tokenizer
from ..model import load_model_config
from .chat import render
from .datasets import check_tokenizer, find_faults, load
from .records import read_record
from .sampler import permutation
from .splits import Datasets, Loaded, Side, Used, divide
from .tokenize import Example

_BARS = 12  # Of the histogram.
_TRIED = 200  # Texts that are taken there and back.


def check(config: Config, console: Console, shown: int = 3) -> None:
    """Prints counts, lengths, shares and a few examples with what is learned of them.

    Raises:
      DataError: listing everything that would make training on this data wrong.
    """
    base = resolve_model(config.model.path, config.model.revision)
    vocab_size = load_model_config(base).vocab_size
    tokenizer = load_tokenizer(base, config.model.chat_template)
    if config.data.streaming:
        raise UserError(
            "data.streaming: a check reads all of the data; name a part of it in data.train and "
            "set data.streaming to false"
        )
    data = config.data.model_copy(update={"on_error": "report"})
    cache = Path(config.cache).expanduser()
    loaded = load(data, tokenizer, cache, console)
    faults = find_faults(data, loaded, vocab_size)
    try:
        check_tokenizer(tokenizer, vocab_size)
    except UserError as fault:
        faults.insert(0, str(fault))
    try:
        made = divide(data, loaded, config.seed, cache)
    except UserError as fault:
        raise DataError([*faults, str(fault)]) from None
    for side in made.sides:
        console.print(_counts(side))
        console.print(_lengths(side))
    console.print(_repeated(made.train))
    console.print(_round_trip(loaded, tokenizer))
    for number in range(min(shown, len(made.train.lengths))):
        example = Used(made.train.parts)[number]
        console.print(_drawn(example, tokenizer, data.max_length, console), soft_wrap=True)
    faults += _wrong(made, tokenizer, config.batch.size, config.seed)
    if faults:
        raise DataError(faults)
    console.print("nothing found that would make training wrong", style="bold green")


def _counts(side: Side) -> Table:
    packing = side.data.packing
    padding = "padded by batch" if packing == "bucketed" else f"{side.padding:.1%} padding"
    rows = f"{side.rows.num_rows:,} {'padded' if packing == 'none' else packing} rows"
    title = f"{side.name}: {rows}, {padding}"
    table = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left")
    table.add_column("source", overflow="fold")
    for name in ("used", "cut", "too long", "left out", "faulty", "tokens", "learned"):
        table.add_column(name, justify="right")
    for part in side.parts:
        tokens = int(part.lengths.sum(dtype=np.int64))
        unused = len(part.side) - len(part.used) - part.dropped
        counts = [len(part.used), len(part.cut), part.dropped, unused, len(part.store.faults)]
        numbers = [f"{count:,}" for count in (*counts, tokens)]
        table.add_row(Text(part.source.path), *numbers, f"{part.targets / tokens:.1%}")
    return table


def _lengths(side: Side) -> Text:
    """A histogram of the examples' tokens before they are cut or dropped."""
    lengths = np.concatenate([part.store.index["length"][part.side] for part in side.parts])
    counts, edges = np.histogram(lengths, _BARS, (0, int(lengths.max()) + 1))
    text = Text(f"\n{side.name}: tokens an example, median {int(np.median(lengths)):,}\n")
    for count, (low, high) in zip(counts.tolist(), pairwise(edges.tolist()), strict=True):
        bar = "█" * -(-40 * count // int(counts.max()))
        over = "" if low <= side.data.max_length else "  over data.max_length"
        text.append(
            f"{int(np.ceil(low)):>9,} to {int(np.ceil(high)) - 1:<9,} {bar} {count:,}{over}\n"
        )
    return text


def _repeated(side: Side) -> str:
    digests = np.concatenate([part.store.index["digest"][part.used] for part in side.parts])
    return f"{len(digests) - len(np.unique(digests)):,} training examples repeat another one"


def _round_trip(loaded: Sequence[Loaded], tokenizer: Any) -> Text:
    """How many texts are the same after they were tokens, and the first that is not."""
    tried = 0
    changed = []
    for each in loaded:
        records = np.unique(each.store.index["record"])
        for at in permutation(len(records), 0)[: -(-_TRIED // len(loaded))]:
            record = int(records[at])
            row = each.store.rows[record]
            read = read_record(row, each.source.format, each.source.columns)
            for made in render(read, tokenizer):
                tried += 1
                ids = tokenizer(made.text, add_special_tokens=False).input_ids
                if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != made.text:
                    changed.append(each.store.where(record))
    said = f"{tried - len(changed):,} of {tried:,} texts that were tried survive a round trip\n"
    return Text(said + (f"the first that does not: {changed[0]}\n" if changed else ""))


def _drawn(example: Example, tokenizer: Any, max_length: int, console: Console) -> Text:
    """The text of an example, with what is learned of it in colour; without colour, in ⟦ ⟧."""
    tokens, target = example.tokens[:max_length], example.target[:max_length]
    edges = [0, *(np.flatnonzero(np.diff(target)) + 1).tolist(), len(tokens)]
    text = Text()
    for begin, end in pairwise(edges):
        piece = tokenizer.decode(tokens[begin:end], clean_up_tokenization_spaces=False)
        if not target[begin]:
            text.append(piece, style="dim")
        elif console.is_terminal and not console.no_color:
            text.append(piece, style="bold green")
        else:
            text.append(f"⟦{piece}⟧")
    return text.append("\n")


def _wrong(made: Datasets, tokenizer: Any, batch_size: int, seed: int) -> list[str]:
    """What no single row is at fault for."""
    faults = []
    rows = made.train.batches(batch_size, seed).rows_in_epoch
    if rows < batch_size:
        faults.append(
            f"data.train: an epoch has {rows} rows, fewer than a batch of {batch_size}; "
            "lower batch.size or add data"
        )
    if made.held_out is not None:
        faults += _shared(made.train, made.held_out)
    if not _ends_learned(made.train, tokenizer):
        faults.append(
            "data.train: no end token is learned in the examples looked at, so generation would "
            "not stop; check eos_token and the end of turn in the chat template"
        )
    return faults


def _shared(train: Side, held_out: Side) -> list[str]:
    """Held-out examples that are trained on."""
    learned = np.concatenate([part.store.index["digest"][part.used] for part in train.parts])
    for part in held_out.parts:
        index = part.store.index[part.used]
        twice = index[np.isin(index["digest"], learned)]
        if len(twice):
            where = part.store.where(int(twice["record"][0]))
            return [
                f"{where}: is in the training data too, as are {len(twice) - 1:,} others; take "
                "them out of one side, or the held-out loss means nothing"
            ]
    return []


def _ends_learned(side: Side, tokenizer: Any) -> bool:
    ends = [id for id, token in tokenizer.added_tokens_decoder.items() if token.special]
    used = Used(side.parts)
    for at in range(min(_TRIED, len(side.lengths))):
        tokens, target = used[at]
        if np.isin(tokens[target], [*ends, tokenizer.eos_token_id]).any():
            return True
    return False
