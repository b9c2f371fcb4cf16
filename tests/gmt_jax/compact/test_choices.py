"""Each way to choose entries of an array: what is chosen, read, written and masked."""

import jax.numpy as jnp
import numpy as np
import pytest

from gmt_jax.compact import choices
from gmt_jax.compact.choices import Choice, Frozen, Rows, Slots, Whole

ARRAY = np.random.default_rng(0).standard_normal((2, 6, 130)).astype("f4")


@pytest.mark.parametrize("form", [Slots, Rows, Whole, Frozen])
def test_what_is_read_is_what_the_mask_says_and_only_that_is_written(form: type[Choice]) -> None:
    array = jnp.asarray(ARRAY[0] if form is Rows else ARRAY).astype(jnp.bfloat16)
    choice = choices.choose(jnp.abs(array), form, 0.75)
    mask = np.asarray(choices.mask(choice, array.shape))
    share = {Slots: 0.25, Rows: 2 / 6, Whole: 1.0, Frozen: 0.0}[form]
    assert mask.mean() == pytest.approx(share, abs=0.01)
    values = choices.read(choice, array)
    if values is None:
        assert choices.write(choice, array, None) is array
        return
    assert np.sort(np.asarray(values).ravel())[-1] == np.asarray(array)[mask].max()
    written = np.asarray(choices.write(choice, array, values + 1))
    np.testing.assert_array_equal(written[~mask], np.asarray(array)[~mask])
    expected = (array.astype(jnp.float32) + 1).astype(jnp.bfloat16)
    np.testing.assert_array_equal(written[mask], np.asarray(expected)[mask])


def test_rows_with_the_largest_norms_are_chosen_and_of_equal_ones_the_first() -> None:
    rows = jnp.array([[1.0, 0.0], [3.0, 4.0], [1.0, 0.0], [0.0, 5.0], [0.0, 0.0]])
    choice = choices.choose(rows, Rows, 0.4)
    assert isinstance(choice, Rows)
    np.testing.assert_array_equal(choice.indices, [0, 1, 3])


@pytest.mark.parametrize(("ratio", "rows"), [(0.95, 1), (0.29, 8), (0.0, 10)])
def test_the_number_of_masked_rows_is_rounded_down(ratio: float, rows: int) -> None:
    assert choices.num_rows(ratio, 10) == rows


@pytest.mark.parametrize("form", [Slots, Rows, Whole, Frozen])
def test_the_choice_of_a_mask_is_the_one_that_has_it(form: type[Choice]) -> None:
    array = jnp.asarray(ARRAY[0] if form is Rows else ARRAY)
    choice = choices.choose(jnp.abs(array), form, 0.75)
    again = choices.choose_mask(choices.mask(choice, array.shape), form, 0.75)
    assert type(again) is type(choice)
    for left, right in zip(again, choice, strict=True):
        np.testing.assert_array_equal(left, right)
