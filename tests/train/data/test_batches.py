"""Rows as arrays: padded, bucketed and packed; the parts of processes; resuming."""

import hashlib
from typing import Any

import numpy as np
import pytest

from train.data.batches import Arrays, Batches, PackingMode
from train.data.packing import Packing, best_fit, one_per_row
from train.data.tokenize import Example


def _examples(lengths: list[int]) -> list[Example]:
    """Examples whose tokens count on from a hundred times their number, counted from 1."""
    return [
        Example(np.arange(n, dtype=np.int32) + 100 * number, np.arange(n) % 3 > 0)
        for number, n in enumerate(lengths, 1)
    ]


def _batches(
    lengths: list[int], packing: PackingMode = "none", size: int = 4, **options: Any
) -> Batches:
    capacity = options.setdefault("max_length", 16)
    rows = (
        best_fit(np.array(lengths), capacity) if packing == "packed" else one_per_row(len(lengths))
    )
    return Batches(
        _examples(lengths),
        rows,
        np.array(lengths),
        batch_size=size,
        packing=packing,
        **{"seed": 0} | options,
    )


def test_a_batch_by_hand() -> None:
    examples = [
        Example(np.array([1, 2, 3, 4], np.int32), np.array([0, 0, 1, 1], bool)),
        Example(np.array([5, 0], np.int32), np.array([1, 1], bool)),
        Example(np.array([7, 8], np.int32), np.array([0, 1], bool)),
    ]
    batches = Batches(
        examples, one_per_row(3), np.array([4, 2, 2]), batch_size=2, max_length=4, seed=0
    )
    assert batches.num_eval_batches == 2
    first, last = batches.eval_batch(0), batches.eval_batch(1)
    assert {key: (value.dtype, value.shape) for key, value in first.items()} == {
        "tokens": (np.int32, (2, 4)),
        "targets": (np.int32, (2, 4)),
        "weights": (np.float32, (2, 4)),
    }
    assert first["tokens"].tolist() == [[1, 2, 3, 4], [5, 0, 0, 0]]
    assert first["targets"].tolist() == [[2, 3, 4, 0], [0, 0, 0, 0]]
    # The second row's target is learned although it has the padding's id.
    assert first["weights"].tolist() == [[0, 1, 1, 0], [1, 0, 0, 0]]
    assert last["tokens"].tolist() == [[7, 8, 0, 0], [0, 0, 0, 0]]
    assert last["weights"].tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]


def test_a_packed_row_by_hand() -> None:
    examples = [
        Example(np.array([1, 2, 3], np.int32), np.array([0, 1, 1], bool)),
        Example(np.array([4, 5], np.int32), np.array([1, 1], bool)),
    ]
    rows = Packing(np.array([0, 1]), np.array([0, 2]))
    made = Batches(
        examples, rows, np.array([3, 2]), batch_size=1, max_length=6, seed=0, packing="packed"
    ).batch(0)
    assert {key: value.tolist()[0] for key, value in made.items()} == {
        "tokens": [1, 2, 3, 4, 5, 0],
        # The first document's last token does not learn the second one's first.
        "targets": [2, 3, 0, 5, 0, 0],
        "weights": [1, 1, 0, 1, 0, 0],
        "segment_ids": [1, 1, 1, 2, 2, 0],
        "positions": [0, 1, 2, 0, 1, 0],
    }


def test_what_is_too_long_is_cut() -> None:
    examples = _examples([9])
    made = Batches(
        examples, one_per_row(1), np.array([4]), batch_size=1, max_length=4, seed=0
    ).batch(0)
    assert made["tokens"].tolist() == [[100, 101, 102, 103]]
    assert made["targets"].tolist() == [[101, 102, 103, 0]]
    assert made["weights"].tolist() == [[1, 1, 0, 0]]


LENGTHS = [int(n) for n in np.random.default_rng(0).integers(1, 17, 45)]
PACKINGS: list[PackingMode] = ["none", "bucketed", "packed"]


def _digest(parts: list[Arrays]) -> str:
    """Of a batch that lies in parts, one process's rows after the other's."""
    whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return hashlib.sha256(
        b"".join(key.encode() + whole[key].tobytes() for key in sorted(whole))
    ).hexdigest()


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("resumed_at", [0, 1, 7, 11, 12, 40])  # Padded, an epoch ends within 11.
def test_resumed_with_any_number_of_processes_the_rows_are_the_same(
    packing: PackingMode, processes: int, resumed_at: int
) -> None:
    whole = _batches(LENGTHS, packing)
    each = [_batches(LENGTHS, packing) for _ in range(processes)]
    for step in range(resumed_at, resumed_at + 6):
        parts = [
            batches.batch(step, np.arange(4).reshape(processes, -1)[process])
            for process, batches in enumerate(each)
        ]
        assert _digest(parts) == _digest([whole.batch(step)])


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_example_is_in_an_epoch_once(packing: PackingMode) -> None:
    batches = _batches(LENGTHS, packing, size=1, max_length=16)
    # Bucketed batches are sorted over several epochs: three of 64 batches have 192 rows.
    steps = 64 * 45 if packing == "bucketed" else batches.rows_per_epoch
    seen = np.concatenate([batches.batch(step)["tokens"][0] for step in range(steps)])
    first = seen[(seen % 100 == 0) & (seen > 0)] // 100
    times = steps // batches.rows_per_epoch
    assert sorted(first.tolist()) == sorted(list(range(1, len(LENGTHS) + 1)) * times)


def test_bucketed_batches_are_as_long_as_they_must_be() -> None:
    lengths = [int(n) for n in np.random.default_rng(1).integers(1, 65, 400)]
    batches = _batches(lengths, "bucketed", max_length=64)
    shapes = []
    for step in range(64):
        batch = batches.batch(step)
        longest = int((batch["tokens"] > 0).sum(1).max())
        assert longest <= batch["tokens"].shape[1] < longest + 8
        shapes.append(batch["tokens"].shape[1])
    assert set(shapes) <= {8, 16, 24, 32, 40, 48, 56, 64}
    assert np.mean(shapes) < 0.7 * 64


@pytest.mark.parametrize("packing", PACKINGS)
def test_tokens_are_counted_without_padding(packing: PackingMode) -> None:
    batches = _batches(LENGTHS, packing)
    for step in range(6):
        assert batches.num_tokens(step) == np.count_nonzero(batches.batch(step)["tokens"])


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("size", [1, 4, 10, 64])
def test_evaluation_takes_every_example_once(packing: PackingMode, size: int) -> None:
    batches = _batches(LENGTHS, packing, size)
    made = [batches.eval_batch(number) for number in range(batches.num_eval_batches)]
    assert all(len(batch["tokens"]) == size for batch in made)
    weight = sum(batch["weights"].sum() for batch in made)
    assert weight == sum(example.loss_mask[1:].sum() for example in _examples(LENGTHS))
