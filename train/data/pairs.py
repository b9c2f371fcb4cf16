"""Preference pairs: two answers that are one example, learned from the same token on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .chat import PAIR, Understood
from .sources import RecordSource
from .token_store import TokenStore
from .tokenize import Example, Fault

SIDES = ("chosen", "rejected")
NOT_A_PAIR = (
    "is not a preference pair, which needs chosen and rejected; name their columns in "
    "data.columns, or train on single answers with gmt-train sft"
)


@dataclass(frozen=True)
class PairStore:
    """The preference pairs of a source, each of them one example.

    An example's arrays are [2, T], the chosen answer and the rejected one after their prompt; the
    shorter is followed by tokens 0 without a loss.

    Attributes:
      answers: the source's examples, in which a pair is two.
      chosen: the numbers of the chosen ones; the rejected ones follow them.
    """

    answers: TokenStore
    chosen: np.ndarray

    @classmethod
    def of(cls, answers: TokenStore) -> "PairStore":
        """The pairs among the examples."""
        return cls(answers, np.flatnonzero(answers.index["notes"] & PAIR)[::2])

    @property
    def records(self) -> RecordSource:
        """What the examples were made of."""
        return self.answers.records

    @property
    def understood(self) -> Sequence[tuple[Understood, int]]:
        """How records were read, each way with the number of records."""
        return self.answers.understood

    @cached_property
    def faults(self) -> Sequence[Fault]:
        """The records that have no example, and why; records that are not pairs among them."""
        index = self.answers.index
        others = np.unique(index["record"][index["notes"] & PAIR == 0])
        return [*self.answers.faults, *((record, NOT_A_PAIR) for record in others.tolist())]

    @cached_property
    def sizes(self) -> np.ndarray:
        """Tokens of both answers with their prompt [N, 2]."""
        length = self.answers.index["length"]
        return np.stack([length[self.chosen], length[self.chosen + 1]], axis=1)

    @cached_property
    def index(self) -> np.ndarray:
        """The INDEX [N] of the pairs: their longer answer, and from where on both are learned."""
        chosen, rejected = (self.answers.index[self.chosen + side] for side in (0, 1))
        index = chosen.copy()
        for name in ("length", "first_loss_token", "highest_token"):
            index[name] = np.maximum(chosen[name], rejected[name])
        index["num_loss_tokens"] += rejected["num_loss_tokens"]
        index["digest"] = chosen["digest"] * np.uint64(3) + rejected["digest"]
        index["notes"] |= rejected["notes"]
        return index

    def where(self, record: int) -> str:
        """A record's position as a user would look it up."""
        return self.answers.where(record)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, number: int) -> Example:
        sides = [self.answers[int(self.chosen[number]) + side] for side in (0, 1)]
        shape = (2, max(len(side.tokens) for side in sides))
        example = Example(np.zeros(shape, np.int32), np.zeros(shape, np.bool_))
        for side, (tokens, loss_mask) in enumerate(sides):
            example.tokens[side, : len(tokens)] = tokens
            example.loss_mask[side, : len(tokens)] = loss_mask
        return example


def side_of(pair: Example, side: int) -> Example:
    """The chosen (0) or the rejected (1) answer of a pair, after its prompt."""
    tokens, loss_mask = pair.tokens[side], pair.loss_mask[side]
    end = int(np.flatnonzero(loss_mask)[-1]) + 1
    return Example(tokens[:end], loss_mask[:end])


Store = TokenStore | PairStore


class JoinedExamples:
    """Some examples of several stores, numbered on from one to the next."""

    def __init__(self, parts: Sequence[tuple[Store, np.ndarray]]) -> None:
        self._stores = [store for store, _ in parts]
        self._numbers = np.concatenate([numbers for _, numbers in parts])
        self._store = np.repeat(np.arange(len(parts)), [len(numbers) for _, numbers in parts])

    def find(self, number: int) -> tuple[Store, int]:
        """The store that holds an example, and its number there."""
        return self._stores[self._store[number]], int(self._numbers[number])

    def __getitem__(self, number: int) -> Example:
        store, index = self.find(number)
        return store[index]
