"""From the config's data section to the examples that are trained on and held out."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from train.config import DataSection
from train.data.batches import Examples
from train.data.render import Example, render
from train.data.sources import load_records
from train.data.stdlib import NAME as STDLIB
from train.data.stdlib import load_stdlib
from train.errors import UserError

Rows = list[dict[str, Any]]


@dataclass
class Report:
    """What became of a source's records."""

    name: str
    kept: int = 0
    dropped: int = 0
    truncated: int = 0
    tokens: int = 0
    learned: int = 0

    def __str__(self) -> str:
        share = self.learned / max(self.tokens, 1)
        text = f"{self.name}: {self.kept:,} examples, {self.tokens:,} tokens, {share:.0%} learned"
        for count, what in ((self.dropped, "dropped"), (self.truncated, "cut")):
            if count:
                text += f"; {count:,} over-long {what}"
        return text


def build_examples(
    data: DataSection, tokenizer: Any, vocab_size: int, seed: int
) -> tuple[tuple[Examples, Report], tuple[Examples, Report] | None]:
    """Examples to train on, and held-out ones unless their share is 0, each with its report.

    Raises:
      UserError: with its place, for a record that cannot be used; for a side left empty.
    """
    learned, heldout = _sides(data, seed)
    train = _examples("train", learned, data, tokenizer, vocab_size, data.limit, seed)
    if heldout is None:
        return train, None
    return train, _examples("held out", heldout, data, tokenizer, vocab_size, data.eval_limit, seed)


def _sides(data: DataSection, seed: int) -> tuple[Rows, Rows | None]:
    """The records to train on, and those held out: named ones, or a share split off."""
    named = data.eval is not None or data.eval_split is not None
    learned: Rows
    if data.train == STDLIB:
        # The held-out modules are the same for every seed, and never trained on.
        learned, rest = load_stdlib(data.eval_fraction)
    else:
        every = load_records(data.train, data.split, data.revision, data.columns)
        share = 0.0 if named else data.eval_fraction
        held = [_unit(f"{seed}/{number}") < share for number in range(len(every))]
        learned = [every[number] for number, out in enumerate(held) if not out]
        rest = [every[number] for number, out in enumerate(held) if out]
    if named:
        source, split = data.eval or data.train, data.eval_split or data.split
        if source == STDLIB:
            return learned, load_stdlib(data.eval_fraction)[1]
        other = load_records(source, split, data.revision, data.columns)
        return learned, [other[number] for number in range(len(other))]
    return learned, rest if data.eval_fraction else None


def _unit(text: str) -> float:
    """A number in [0, 1) from a text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _examples(
    name: str,
    records: Rows,
    data: DataSection,
    tokenizer: Any,
    vocab_size: int,
    limit: int | None,
    seed: int,
) -> tuple[Examples, Report]:
    report = Report(name)
    if limit is not None:  # A sample, not the beginning, which may be of one kind.
        records = sorted(records, key=lambda record: _unit(f"{seed}/{record['where']}"))
    kept = list(islice(_rendered(records, data, tokenizer, vocab_size, report), limit))
    if not kept:
        raise UserError(
            f"data: nothing is left for {name} ({report.dropped} over-long examples dropped); "
            "raise data.max_length or data.eval_fraction, or name other data"
        )
    report.kept = len(kept)
    report.tokens = sum(len(example.tokens) for example in kept)
    report.learned = sum(int(example.learned.sum()) for example in kept)
    examples = Examples(
        np.concatenate([example.tokens for example in kept]),
        np.concatenate([example.learned for example in kept]),
        np.cumsum([len(example.tokens) for example in kept]),
    )
    return examples, report


def _rendered(
    records: Rows, data: DataSection, tokenizer: Any, vocab_size: int, report: Report
) -> Iterator[Example]:
    """The records' examples that fit, counting the ones that do not."""
    for record in records:
        example = render(record, record["where"], tokenizer)
        if example.tokens.max() >= vocab_size:
            raise UserError(
                f"{record['where']}: has the token {example.tokens.max()}, but the model's "
                f"vocabulary ends at {vocab_size - 1}; the tokenizer is another model's"
            )
        length = len(example.tokens)
        if length > data.max_length:
            cut = example._replace(
                tokens=example.tokens[: data.max_length],
                learned=example.learned[: data.max_length],
            )
            if data.overlong == "error":
                raise UserError(
                    f"{record['where']}: {length} tokens, over data.max_length={data.max_length}; "
                    "raise it, or set data.overlong to drop or truncate"
                )
            if data.overlong == "drop" or not cut.learned[1:].any():
                report.dropped += 1
                continue
            report.truncated += 1
            example = cut
        yield example
