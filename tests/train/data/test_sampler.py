"""The order of rows: every one as often as it should be, whichever step is asked for first."""

from collections import Counter

import numpy as np
import pytest

from train.data.sampler import WINDOW, Sampler, SourceRows


def _sampler(
    *sources: SourceRows, size: int = 4, seed: int = 0, lengths: np.ndarray | None = None
) -> Sampler:
    return Sampler(sources, batch_size=size, seed=seed, lengths=lengths)


def _seen(sampler: Sampler, steps: range) -> list[int]:
    return [int(row) for step in steps for row in sampler.rows(step)]


@pytest.mark.parametrize(("count", "size"), [(10, 4), (10, 5), (7, 3), (3, 8), (1, 4)])
def test_every_epoch_has_every_row_once(count: int, size: int) -> None:
    seen = _seen(_sampler(SourceRows(count), size=size), range(count * 4))
    epochs = [seen[at : at + count] for at in range(0, len(seen), count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count > 5:
        assert len(set(map(tuple, epochs))) == len(epochs)


def test_weights_say_how_often_an_epoch_has_a_row() -> None:
    sampler = _sampler(SourceRows(6, 2.0), SourceRows(8, 0.5), SourceRows(3))
    assert sampler.rows_per_epoch == 12 + 4 + 3
    seen = _seen(sampler, range(19 * 2))
    epochs = [Counter(seen[at : at + 19]) for at in range(0, 19 * 8, 19)]
    for epoch in epochs:
        assert [epoch[row] for row in range(6)] == [2] * 6
        assert sum(epoch[row] for row in range(6, 14)) == 4
        assert [epoch[row] for row in range(14, 17)] == [1] * 3
    halves = [{row for row in epoch if 6 <= row < 14} for epoch in epochs]
    assert halves[0] | halves[1] == set(range(6, 14)), "the next epoch has the other half"
    assert halves[0] not in ({6, 7, 8, 9}, {10, 11, 12, 13})


def test_a_batch_does_not_depend_on_those_before() -> None:
    lengths = np.arange(50)
    for options in ({}, {"lengths": lengths}):
        whole = [_sampler(SourceRows(50), **options).rows(step) for step in range(150)]  # type: ignore[arg-type]
        same = _sampler(SourceRows(50), **options)  # type: ignore[arg-type]
        for step in (149, 0, 70, 70, 12, 63, 64):
            np.testing.assert_array_equal(same.rows(step), whole[step])


def test_the_seed_decides_the_order() -> None:
    orders = [_seen(_sampler(SourceRows(50), seed=seed), range(5)) for seed in range(2)]
    assert orders[0] != orders[1]


def test_the_order_is_that_of_earlier_versions() -> None:
    # A run that goes on after an upgrade must not see other batches.
    pinned = [0, 4, 7, 1, 5, 6, 3, 2, 0, 6, 2, 1, 3, 7, 4, 5]
    assert _seen(_sampler(SourceRows(8), seed=3), range(4)) == pinned


def test_rows_of_about_one_length_stand_together() -> None:
    lengths = np.random.default_rng(0).permutation(WINDOW * 4)
    sampler = _sampler(SourceRows(len(lengths)), lengths=lengths)
    batches = [sampler.rows(step) for step in range(WINDOW)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(np.ptp(lengths[rows]) == 3 for rows in batches)
    means = [lengths[rows].mean() for rows in batches]
    assert means != sorted(means), "short ones do not come first"


def test_steps_are_counted_from_0() -> None:
    with pytest.raises(ValueError, match="from 0, got -1"):
        _sampler(SourceRows(3)).rows(-1)
