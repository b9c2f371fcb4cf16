"""The two sides, training and held-out: which examples are used, and in which rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..config.data import DataSection, Source
from ..errors import UserError
from .batches import Batches
from .packing import Plan, one_a_row, plan_rows, waste
from .sampler import Group, permutation
from .token_store import Store
from .tokenize import Example

Overlong = Literal["drop", "truncate", "error"]


@dataclass(frozen=True)
class Loaded:
    """One source's examples, and the side that they are for; None: still to be split."""

    source: Source
    store: Store
    held_out: bool | None


@dataclass(frozen=True)
class Part:
    """What one source gives to one side."""

    source: Source
    store: Store
    side: np.ndarray  # Numbers of the examples on this side.
    used: np.ndarray  # Those of them that are used, in the order of their rows.
    fit: np.ndarray  # Whether an example of the source fits, by number.
    max_length: int

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of the used examples after cutting."""
        return np.minimum(self.store.index["length"][self.used], self.max_length)

    @property
    def cut(self) -> np.ndarray:
        """The used examples that are cut."""
        return self.used[self.store.index["length"][self.used] > self.max_length]

    @property
    def dropped(self) -> int:
        """Examples that are too long to be used."""
        return int(np.count_nonzero(~self.fit[self.side]))

    @property
    def targets(self) -> int:
        """Learned tokens after cutting."""
        lost = sum(
            np.count_nonzero(self.store[at].target[self.max_length :]) for at in self.cut.tolist()
        )
        return int(self.store.index["targets"][self.used].sum(dtype=np.int64)) - int(lost)


@dataclass(frozen=True)
class Side:
    """The data to train on, or what is held out."""

    name: str
    parts: Sequence[Part]
    rows: Plan  # Of the parts' used examples, numbered through.
    groups: Sequence[Group]
    data: DataSection

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example."""
        return np.concatenate([part.lengths for part in self.parts])

    @property
    def digest(self) -> str:
        """Equal for equal examples in the same order."""
        digests = [part.store.index["digest"][part.used] for part in self.parts]
        return hashlib.blake2b(np.concatenate(digests), digest_size=16).hexdigest()

    @property
    def padding(self) -> float:
        """The share of the rows that is padding, bucketed rows aside."""
        return waste(self.rows, self.lengths, self.data.max_length)

    def batches(self, batch_size: int, seed: int) -> Batches:
        """Its rows in batches."""
        return Batches(
            Used(self.parts),
            self.rows,
            self.lengths,
            batch_size=batch_size,
            max_length=self.data.max_length,
            seed=seed,
            packing=self.data.packing,
            groups=self.groups,
        )

    def __str__(self) -> str:
        examples = sum(len(part.used) for part in self.parts)
        dropped, cut = sum(p.dropped for p in self.parts), sum(len(p.cut) for p in self.parts)
        unused = sum(len(part.side) for part in self.parts) - examples - dropped
        tokens, targets = int(self.lengths.sum()), sum(part.targets for part in self.parts)
        limit = f"{self.data.max_length:,} tokens"
        said = [f"{self.name}: {examples:,} examples", f"{tokens:,} tokens ({targets:,} learned)"]
        said += [f"{dropped:,} dropped as over {limit}"] * bool(dropped)
        said += [f"{cut:,} cut to {limit}"] * bool(cut)
        said += [f"{unused:,} left out by the limit"] * bool(unused)
        if self.data.packing == "packed":
            said.append(f"packed into {self.rows.num_rows:,} rows ({self.padding:.1%} padding)")
        return ", ".join(said)


class Used:
    """The used examples of several parts, numbered through."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._stores = [part.store for part in parts]
        self._numbers = np.concatenate([part.used for part in parts])
        self._store = np.repeat(np.arange(len(parts)), [len(part.used) for part in parts])

    def __getitem__(self, index: int) -> Example:
        return self._stores[self._store[index]][int(self._numbers[index])]


@dataclass(frozen=True)
class Datasets:
    """Both sides."""

    train: Side
    held_out: Side | None

    @property
    def sides(self) -> list[Side]:
        """The sides that there are."""
        return [self.train] + ([] if self.held_out is None else [self.held_out])


def divide(data: DataSection, loaded: Sequence[Loaded], seed: int, cache: Path) -> Datasets:
    """Which examples are on which side, and in which rows."""
    indices = [each.store.index for each in loaded]
    # Both answers of a preference pair go where the chosen one does.
    digests = [i["digest"][np.searchsorted(i["record"], i["record"])] for i in indices]
    undecided = [at for at, each in enumerate(loaded) if each.held_out is None]
    held = [np.full(len(each.store), bool(each.held_out)) for each in loaded]
    if undecided:
        joined = split_off(
            np.concatenate([digests[at] for at in undecided]), data.eval_fraction, seed
        )
        ends = np.cumsum([len(digests[at]) for at in undecided])[:-1]
        for at, mask in zip(undecided, np.split(joined, ends), strict=True):
            held[at] = mask
    if all(mask.all() for mask in held):
        raise UserError(
            f"data: nothing is left to train on of {sum(map(len, held))} records; "
            "lower data.eval_fraction, or name data.eval"
        )
    train = _side("training data", data, loaded, [~mask for mask in held], data.limit, seed, cache)
    if not any(mask.any() for mask in held):
        return Datasets(train, None)
    return Datasets(train, held_out_side(data, loaded, seed, cache, held))


def held_out_side(
    data: DataSection,
    loaded: Sequence[Loaded],
    seed: int,
    cache: Path,
    masks: Sequence[np.ndarray] | None = None,
) -> Side:
    """The held-out side: of each source the examples that its mask says, or all."""
    masks = masks or [np.ones(len(each.store), bool) for each in loaded]
    return _side("held-out data", data, loaded, masks, data.eval_limit, seed, cache)


def refuse_pairs(loaded: Sequence[Loaded]) -> None:
    """Supervised fine-tuning learns from one answer.

    Raises:
      UserError: for the first preference pair.
    """
    for each in loaded:
        twice = np.flatnonzero(np.diff(each.store.index["record"]) == 0)
        if len(twice):
            where = each.store.where(int(each.store.index["record"][twice[0]]))
            raise UserError(
                f"{where}: is a preference pair, and sft learns from one answer; name it with "
                "data.columns: {prompt: prompt, completion: chosen}"
            )


def _side(
    name: str,
    data: DataSection,
    loaded: Sequence[Loaded],
    masks: Sequence[np.ndarray],
    limit: int | None,
    seed: int,
    cache: Path,
) -> Side:
    present = [(each, mask) for each, mask in zip(loaded, masks, strict=True) if mask.any()]
    fit = [fits(each.store.index, data.max_length, data.overlong) for each, _ in present]
    numbers = [np.flatnonzero(mask) for _, mask in present]
    used = limited(numbers, fit, limit, seed)
    parts = [
        Part(each.source, each.store, numbers[at], used[at], fit[at], data.max_length)
        for at, (each, _) in enumerate(present)
    ]
    parts = [part for part in parts if len(part.used)]
    if not parts:
        dropped = sum(len(n) for n in numbers)
        raise UserError(
            f"{name}: no example is left ({dropped:,} over data.max_length {data.max_length:,}); "
            "raise it, or name other data"
        )
    rows, groups = [], []
    for part in parts:
        packed = data.packing == "packed"
        made = (
            plan_rows(part.lengths, data.max_length, cache) if packed else one_a_row(len(part.used))
        )
        rows.append(made)
        groups.append(Group(made.num_rows, part.source.weight))
    return Side(name, parts, _joined(rows), groups, data)


def _joined(rows: Sequence[Plan]) -> Plan:
    """Rows of several sources, with their examples and their rows numbered through."""
    firsts = np.cumsum([0, *(len(each.members) for each in rows)])
    members = [each.members + first for each, first in zip(rows, firsts, strict=False)]
    offsets = [each.offsets[:-1] + first for each, first in zip(rows, firsts, strict=False)]
    return Plan(np.concatenate(members), np.concatenate([*offsets, firsts[-1:]]))


def fits(index: np.ndarray, max_length: int, overlong: Overlong) -> np.ndarray:
    """Whether an example is used: bool [N].

    One that is cut so short that nothing is left to learn is not.
    """
    fit: np.ndarray = index["length"] <= max_length
    return fit | (index["first"] < max_length) if overlong == "truncate" else fit


def split_off(digests: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Whether an example is held out: bool [N], at least one of them and about the fraction.

    It is decided by the example's tokens and the seed, so that equal examples are on one side,
    whichever sources they are from.

    Args:
      digests: uint64 [N].
    """
    if fraction == 0 or len(digests) == 0:
        return np.zeros(len(digests), bool)
    draws = _mix(digests ^ _mix(np.full(1, seed, np.uint64)))
    count = max(1, round(fraction * len(draws)))
    return draws <= np.partition(draws, count - 1)[count - 1]


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele et al. 2014) of uint64 [N]: a bijection."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def limited(
    sides: Sequence[np.ndarray], fit: Sequence[np.ndarray], limit: int | None, seed: int
) -> list[np.ndarray]:
    """The numbers that are used of several sources: those that fit, or a sample of them.

    Args:
      sides: each source's numbers on this side.
      fit: whether each source's examples fit, by number.
      limit: of the sample, whose order is random; None takes all in their order.
    """
    source = np.repeat(np.arange(len(sides)), [len(numbers) for numbers in sides])
    joined = np.concatenate(sides)
    used = np.concatenate([ok[numbers] for ok, numbers in zip(fit, sides, strict=True)])
    if limit is None:
        chosen = np.flatnonzero(used)
    else:
        drawn = permutation(len(joined), seed, len(joined))
        chosen = drawn[used[drawn]][:limit]
    return [joined[chosen][source[chosen] == number] for number in range(len(sides))]
