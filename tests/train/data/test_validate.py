"""What keeps examples from being trained on."""

from typing import Any

import numpy as np
import pytest

from train.config.data import DataSection
from train.data.chat import PAIR, SPLIT
from train.data.tokenize import INDEX
from train.data.validate import check_epoch, check_tokenizer, find_pairs, find_unusable, fits
from train.errors import UserError


def _index(**columns: Any) -> np.ndarray:
    index = np.zeros(len(next(iter(columns.values()))), INDEX)
    index["record"] = np.arange(len(index))
    for name, values in columns.items():
        index[name] = values
    return index


def _data(**settings: Any) -> DataSection:
    return DataSection(train="a.jsonl", **{"max_length": 5} | settings)


def test_long_examples_are_dropped_or_cut() -> None:
    index = _index(length=[5, 6, 9, 9], first_loss_token=[1, 1, 4, 5])
    assert fits(index, _data()).tolist() == [True, False, False, False]
    assert fits(index, _data(overlong="truncate")).tolist() == [True, True, True, False]


def test_long_examples_can_be_refused() -> None:
    index = _index(length=[5, 6])
    assert find_unusable(index, _data(), 10) == []
    ((record, message),) = find_unusable(index, _data(overlong="error"), 10)
    assert record == 1
    assert message.startswith("6 tokens, over data.max_length 5; raise it")


def test_tokens_must_be_in_the_vocabulary() -> None:
    ((record, message),) = find_unusable(_index(highest_token=[9, 10]), _data(), 10)
    assert record == 1
    assert message.startswith("has token 10, and the model's vocabulary ends at 9")


def test_pairs_are_found_and_split_conversations_are_not_pairs() -> None:
    ((record, message),) = find_pairs(
        _index(record=[0, 1, 1, 2, 3, 3], notes=[0, PAIR, PAIR, 0, SPLIT, SPLIT])
    )
    assert record == 1
    assert "is a preference pair" in message


def test_every_token_of_the_tokenizer_is_checked(tokenizer: Any) -> None:
    check_tokenizer(tokenizer, 259)
    with pytest.raises(
        UserError, match=r"tokens up to 258, and the model's vocabulary ends at 257"
    ):
        check_tokenizer(tokenizer, 258)


def test_an_epoch_is_at_least_a_batch() -> None:
    check_epoch(8, 8)
    with pytest.raises(UserError, match="an epoch has 7 rows, fewer than a batch of 8"):
        check_epoch(7, 8)
