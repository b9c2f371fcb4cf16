"""From the config's data section to the examples that are trained on and held out."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from train.data.batches import DataReport, Examples, Overlong, prepare
from train.data.sources import Records, is_hub_name, load_records
from train.data.stdlib import NAME as STDLIB
from train.data.stdlib import load_stdlib
from train.errors import UserError

_Side = tuple[Records, list[int]]  # Records, and the numbers of those that are used.


def build_datasets(
    *,
    tokenizer: Any,
    vocab_size: int,
    seed: int,
    train: str,
    eval: str | None,
    split: str,
    eval_split: str | None,
    revision: str | None,
    columns: Mapping[str, str],
    eval_fraction: float,
    max_length: int,
    overlong: Overlong,
    limit: int | None,
    eval_limit: int | None,
) -> tuple[Examples, Examples | None, list[DataReport]]:
    """Tokenised examples to train on and, unless eval_fraction is 0, held-out ones.

    Held-out data is what `eval` or `eval_split` names. Otherwise it is split off: of the standard
    library by module, of other data by a seeded hash of the record, so that equal records are on
    the same side. The other arguments are those of the config's data section.

    Raises:
      UserError: where data cannot be loaded or used, or a side has none.
    """
    learned, held_out = _sides(
        train, eval, split, eval_split, revision, columns, eval_fraction, seed
    )
    sides = [("training data", learned, limit), ("held-out data", held_out, eval_limit)]
    made = [
        prepare(
            side[0],
            tokenizer,
            name=name,
            max_length=max_length,
            overlong=overlong,
            vocab_size=vocab_size,
            order=side[1] if most is None else _shuffled(side[1], seed),
            limit=most,
        )
        for name, side, most in sides
        if side is not None
    ]
    reports = [report for _, report in made]
    return made[0][0], made[1][0] if held_out else None, reports


def _sides(
    train: str,
    eval: str | None,
    split: str,
    eval_split: str | None,
    revision: str | None,
    columns: Mapping[str, str],
    eval_fraction: float,
    seed: int,
) -> tuple[_Side, _Side | None]:
    """Records to train on and held-out ones."""
    source, named = eval or train, eval_split or split
    if eval_split is not None and (source == STDLIB or not is_hub_name(source)):
        raise UserError(f"data.eval_split: {source} has no splits; name held-out data in data.eval")
    if eval is not None and (source, named) == (train, split):
        raise UserError(
            f"data.eval: {source} is trained on; name other data, or leave it out to split some off"
        )
    apart = eval is not None or eval_split is not None
    if not apart and train != STDLIB:
        return _split_off(load_records(train, split, revision, columns), eval_fraction, seed)
    stdlib: tuple[Records, Records] = ([], [])
    if STDLIB in (train, source):
        stdlib = load_stdlib(eval_fraction if source == STDLIB else 0)
    # A revision is one repository's.
    at = revision if source == train else None
    learned = stdlib[0] if train == STDLIB else load_records(train, split, revision, columns)
    held_out = stdlib[1] if source == STDLIB else load_records(source, named, at, columns)
    without = not apart and eval_fraction == 0
    return _all(learned, "train on"), None if without else _all(held_out, "hold out")


def _all(records: Records, use: str) -> _Side:
    if len(records) == 0:
        raise UserError(f"data: nothing is left to {use}; change data.eval_fraction")
    return records, list(range(len(records)))


def _split_off(records: Records, fraction: float, seed: int) -> tuple[_Side, _Side | None]:
    """The share of the records whose hashes are the smallest, and the others."""
    if fraction == 0:
        return _all(records, "train on"), None
    hashes = np.array([_hash(records[at], seed) for at in range(len(records))], np.uint64)
    count = max(1, round(fraction * len(records)))
    inside = hashes <= np.sort(hashes)[count - 1]
    learned, held_out = np.flatnonzero(~inside).tolist(), np.flatnonzero(inside).tolist()
    if not learned:
        raise UserError(
            f"data: nothing is left to train on of {len(records)} records; "
            "lower data.eval_fraction, or name data.eval"
        )
    return (records, learned), (records, held_out)


def _hash(record: Mapping[str, Any], seed: int) -> int:
    content = {key: value for key, value in record.items() if key != "where"}
    text = json.dumps([seed, content], sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _shuffled(numbers: list[int], seed: int) -> list[int]:
    bits = np.random.PCG64(np.random.SeedSequence([seed, len(numbers)]))
    order = np.argsort(bits.random_raw(len(numbers)), kind="stable")
    return [numbers[at] for at in order]
