"""What keeps examples from being trained on; the same for indexed and streamed data."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..config.data import DataSection
from ..errors import UserError
from .chat import PAIR
from .pairs import Store
from .summary import group_faults
from .tokenize import Fault


def check_tokenizer(tokenizer: Any, vocab_size: int) -> None:
    """Checks that every token of the tokenizer is in the model's vocabulary.

    Raises:
      UserError: if one is not.
    """
    highest = max(tokenizer.get_vocab().values())
    if highest >= vocab_size:
        raise UserError(
            f"the tokenizer has tokens up to {highest}, and the model's vocabulary ends at "
            f"{vocab_size - 1}; use the tokenizer that belongs to the model"
        )


def find_unusable(index: np.ndarray, data: DataSection, vocab_size: int) -> list[Fault]:
    """The records of an INDEX with tokens that the model does not have, or too many of them."""
    faults = []
    for record, highest in index[index["highest_token"] >= vocab_size][["record", "highest_token"]]:
        message = (
            f"has token {highest}, and the model's vocabulary ends at {vocab_size - 1}; "
            "use the tokenizer that belongs to the model"
        )
        faults.append((int(record), message))
    if data.overlong == "error":
        for record, length in index[index["length"] > data.max_length][["record", "length"]]:
            message = (
                f"{length:,} tokens, over data.max_length {data.max_length:,}; "
                "raise it, or set data.overlong to drop or truncate"
            )
            faults.append((int(record), message))
    return sorted(faults)


def find_pairs(index: np.ndarray) -> list[Fault]:
    """The preference pairs of an INDEX, which supervised fine-tuning cannot train on."""
    message = (
        "is a preference pair, and sft trains on one answer; name it with "
        "data.columns: {prompt: prompt, completion: chosen}, or {messages: chosen} where chosen is "
        "a whole conversation, or train on pairs with gmt-train dpo"
    )
    pairs = index["record"][index["notes"] & PAIR != 0]
    return [(record, message) for record in np.unique(pairs).tolist()]


def fits(index: np.ndarray, data: DataSection) -> np.ndarray:
    """Whether each example of an INDEX is used: bool [N].

    An example over `max_length` is dropped, or cut if tokens with a loss are left then.
    """
    fit: np.ndarray = index["length"] <= data.max_length
    if data.overlong == "truncate":
        fit = fit | (index["first_loss_token"] < data.max_length)
    return fit


def find_faults(data: DataSection, stores: Iterable[Store], vocab_size: int) -> list[str]:
    """What keeps records of the stores from being used, a line a kind, with its first places."""
    return group_faults(
        (store.where(record), message)
        for store in stores
        for record, message in sorted(
            [*store.faults, *find_unusable(store.index, data, vocab_size)]
        )
    )


def find_pair_faults(stores: Iterable[Store]) -> list[str]:
    """The stores' preference pairs where single answers are trained on, as one line."""
    return group_faults(
        (store.where(record), message)
        for store in stores
        for record, message in find_pairs(store.index)
    )


def check_epoch(rows_per_epoch: int, batch_size: int) -> None:
    """Checks that an epoch is at least a batch.

    Raises:
      UserError: if it is less.
    """
    if rows_per_epoch < batch_size:
        raise UserError(
            f"data.train: an epoch has {rows_per_epoch} rows, fewer than a batch of {batch_size}; "
            "lower batch.size or add data"
        )
