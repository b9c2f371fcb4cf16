"""Batches as a pure function of seed and step; what is kept of the records."""

from typing import Any

import numpy as np
import pytest

from train.data import Batches, Examples, prepare
from train.errors import UserError


def _examples(count: int, length: int = 3) -> Examples:
    """Examples that begin with their own numbers, counted from 1."""
    lengths = [length + i % 2 for i in range(count)]
    tokens = np.concatenate([[i + 1, *range(50, 49 + n)] for i, n in enumerate(lengths)])
    target = np.concatenate([np.arange(n) > 0 for n in lengths])
    return Examples(
        tokens.astype(np.int32), target, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    )


def _batches(count: int, size: int, seed: int = 0) -> Batches:
    return Batches(_examples(count), batch_size=size, max_length=6, pad_id=99, seed=seed)


def _numbers(batches: Batches, steps: range) -> list[int]:
    return [int(n) for step in steps for n in batches.batch(step)["tokens"][:, 0]]


def test_a_batch_by_hand() -> None:
    examples = Examples(
        np.array([1, 2, 3, 4, 5, 9, 7, 8], np.int32),
        np.array([0, 0, 1, 1, 1, 1, 0, 1], bool),  # That of a first token cannot be learned.
        np.array([0, 4, 6, 8]),
    )
    batches = Batches(examples, batch_size=2, max_length=4, pad_id=9, seed=0)
    first, last = batches.eval_batches()
    assert {key: (value.dtype, value.shape) for key, value in first.items()} == {
        "tokens": (np.int32, (2, 4)),
        "targets": (np.int32, (2, 4)),
        "weights": (np.float32, (2, 4)),
    }
    assert first["tokens"].tolist() == [[1, 2, 3, 4], [5, 9, 9, 9]]
    assert first["targets"].tolist() == [[2, 3, 4, 9], [9, 9, 9, 9]]
    # The second row's first target is learned although it has the padding's id.
    assert first["weights"].tolist() == [[0, 1, 1, 0], [1, 0, 0, 0]]
    assert last["tokens"].tolist() == [[7, 8, 9, 9], [9, 9, 9, 9]]
    assert last["weights"].tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(("count", "size"), [(10, 4), (10, 5), (7, 3), (3, 8), (1, 4)])
def test_every_epoch_has_every_example_once(count: int, size: int) -> None:
    seen = _numbers(_batches(count, size), range(count * 4))
    epochs = [seen[at : at + count] for at in range(0, len(seen), count)]
    assert all(sorted(epoch) == list(range(1, count + 1)) for epoch in epochs)
    if count > 5:
        assert len(set(map(tuple, epochs))) == len(epochs)


def test_a_batch_does_not_depend_on_those_before() -> None:
    whole = [_batches(10, 4).batch(step) for step in range(12)]
    same = _batches(10, 4)
    for step in (11, 0, 7, 7, 2, 3):
        for key, value in same.batch(step).items():
            np.testing.assert_array_equal(value, whole[step][key])


def test_the_seed_decides_the_order() -> None:
    steps = range(5)
    assert _numbers(_batches(50, 8, seed=0), steps) != _numbers(_batches(50, 8, seed=1), steps)


def test_the_order_is_that_of_earlier_versions() -> None:
    # A run that goes on after an upgrade must not see other batches.
    pinned = [1, 5, 8, 2, 6, 7, 4, 3, 1, 7, 3, 2, 4, 8, 5, 6]
    assert _numbers(_batches(8, 4, seed=3), range(4)) == pinned


def test_tokens_are_counted_without_padding() -> None:
    batches = _batches(10, 4)
    for step in range(6):
        batch = batches.batch(step)
        assert batches.num_tokens(step) == np.count_nonzero(batch["tokens"] != 99)


@pytest.mark.parametrize("size", [1, 4, 10, 16])
def test_evaluation_takes_every_example_once_in_order(size: int) -> None:
    examples = _examples(10)
    batches = list(_batches(10, size).eval_batches())
    assert all(batch["tokens"].shape == (size, 6) for batch in batches)
    first = [int(n) for batch in batches for n in batch["tokens"][:, 0]]
    assert first[:10] == list(range(1, 11))
    assert set(first[10:]) <= {99}
    weight = sum(batch["weights"].sum() for batch in batches)
    assert weight == sum(examples[at][1][1:].sum() for at in range(10))


def test_no_examples() -> None:
    empty = Examples(np.empty(0, np.int32), np.empty(0, bool), np.zeros(1, np.int64))
    with pytest.raises(UserError, match="holds no examples"):
        Batches(empty, batch_size=4, max_length=8, pad_id=0, seed=0)


RECORDS = [
    {"prompt": "12", "completion": "34", "where": "f:1"},  # 5 tokens with the end
    {"prompt": "1", "completion": "23456789", "where": "f:2"},
    {"prompt": "12345678", "completion": "9", "where": "f:3"},
    {"prompt": "1", "completion": "2", "where": "f:4"},
]


def _prepare(tokenizer: Any, **options: Any) -> Any:
    defaults: dict[str, Any] = {"max_length": 5, "overlong": "drop", "vocab_size": 300}
    return prepare(RECORDS, tokenizer, name="training data", **defaults | options)


def test_what_is_too_long_is_dropped_and_reported(tokenizer: Any) -> None:
    examples, report = _prepare(tokenizer)
    assert examples.offsets.tolist() == [0, 5, 8]
    assert examples[0][1].tolist() == [False, False, True, True, True]
    assert str(report) == (
        "training data: 2 examples, 8 tokens (5 learned), 2 dropped as over 5 tokens"
    )


def test_what_is_too_long_is_cut_where_something_is_left_to_learn(tokenizer: Any) -> None:
    examples, report = _prepare(tokenizer, overlong="truncate")
    assert examples.offsets.tolist() == [0, 5, 10, 13]
    assert examples[1][1].tolist() == [False, True, True, True, True]
    assert str(report) == (
        "training data: 3 examples, 13 tokens (9 learned), 1 dropped as over 5 tokens, "
        "1 cut to 5 tokens"
    )


def test_what_is_too_long_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"f:2: 10 tokens, over data.max_length 5; raise it"):
        _prepare(tokenizer, overlong="error")


def test_nothing_fits(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"training data: no example is left \(4 over data.max_"):
        _prepare(tokenizer, max_length=2)


def test_the_limit_counts_what_is_kept(tokenizer: Any) -> None:
    examples, report = _prepare(tokenizer, order=[1, 3, 0], limit=1)
    assert len(examples[0][0]) == 3
    assert (report.kept, report.dropped) == (1, 1)


def test_tokens_outside_the_models_vocabulary(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"f:1: has token \d+, and the model's vocabulary ends at"):
        _prepare(tokenizer, vocab_size=10)
