"""The training data and the evaluation data: which examples each uses, and in which rows."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config.data import DataSection, Source
from ..errors import UserError
from .batches import Batches, Reference
from .packing import Packing, concatenate, one_per_row, pack
from .pairs import JoinedExamples, Store
from .sampler import SourceRows
from .selection import choose_eval, sample_used
from .summary import describe_notes
from .validate import fits


@dataclass(frozen=True)
class TokenisedSource:
    """One source's examples, and the split that they belong to.

    Attributes:
      is_eval: whether they are evaluation data; None: they are still to be divided.
      eval_set: the name of the evaluation data that they belong to; "": that without a name.
    """

    source: Source
    store: Store
    is_eval: bool | None
    eval_set: str = ""


@dataclass(frozen=True)
class SourceSplit:
    """What one source gives to one split.

    Attributes:
      numbers: the examples that belong to the split.
      used: those of them that are used, in the order of their rows.
      fit: whether each example of the source can be used; see `fits`.
    """

    source: Source
    store: Store
    numbers: np.ndarray
    used: np.ndarray
    fit: np.ndarray
    max_length: int

    @property
    def lengths(self) -> np.ndarray:
        """The length of each used example in a row, after cutting."""
        return np.minimum(self.store.index["length"][self.used], self.max_length)

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each used example, after cutting: [N, 1], or of both answers [N, 2]."""
        return np.minimum(self.store.sizes[self.used], self.max_length)

    @property
    def cut(self) -> np.ndarray:
        """The used examples that are cut."""
        return self.used[self.store.index["length"][self.used] > self.max_length]

    @property
    def num_dropped(self) -> int:
        """The number of examples that are too long to be used."""
        return int(np.count_nonzero(~self.fit[self.numbers]))

    @property
    def num_left_out(self) -> int:
        """The number of examples that the limit leaves out."""
        return len(self.numbers) - len(self.used) - self.num_dropped

    @property
    def num_loss_tokens(self) -> int:
        """Tokens with a loss, after cutting."""
        lost = sum(
            int(np.count_nonzero(self.store[number].loss_mask[..., self.max_length :]))
            for number in self.cut.tolist()
        )
        return int(self.store.index["num_loss_tokens"][self.used].sum(dtype=np.int64)) - lost


@dataclass(frozen=True)
class Split:
    """The training data or the evaluation data.

    Attributes:
      rows: how the used examples of all sources, numbered on from one to the next, share rows.
      source_rows: how many of the rows are each source's.
    """

    name: str
    sources: Sequence[SourceSplit]
    rows: Packing
    source_rows: Sequence[SourceRows]
    data: DataSection

    @property
    def examples(self) -> JoinedExamples:
        """The used examples."""
        return JoinedExamples([(source.store, source.used) for source in self.sources])

    def where(self, number: int) -> str:
        """The position of a used example's record, as a user would look it up."""
        store, index = self.examples.find(number)
        return store.where(int(store.index["record"][index]))

    @property
    def lengths(self) -> np.ndarray:
        """The length of each used example in a row, after cutting."""
        return np.concatenate([source.lengths for source in self.sources])

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each used example, after cutting: [N, 1], or of both answers [N, 2]."""
        return np.concatenate([source.sizes for source in self.sources])

    @property
    def digests(self) -> np.ndarray:
        """The digest of each used example."""
        return np.concatenate([part.store.index["digest"][part.used] for part in self.sources])

    @property
    def digest(self) -> str:
        """A digest of all used examples in their order."""
        return hashlib.blake2b(self.digests, digest_size=16).hexdigest()

    @property
    def padding(self) -> float:
        """The fraction of the rows that is padding, if they are not bucketed."""
        return self.rows.padding(self.sizes.mean(1), self.data.max_length)

    def batches(self, batch_size: int, seed: int, reference: Reference | None = None) -> Batches:
        """Its rows in batches, with a reference's log-probabilities if there is one."""
        return Batches(
            self.examples,
            self.rows,
            self.lengths,
            sizes=self.sizes,
            reference=reference,
            batch_size=batch_size,
            max_length=self.data.max_length,
            seed=seed,
            packing=self.data.packing,
            sources=self.source_rows,
        )

    def __str__(self) -> str:
        num_dropped = sum(source.num_dropped for source in self.sources)
        num_cut = sum(len(source.cut) for source in self.sources)
        num_left_out = sum(source.num_left_out for source in self.sources)
        num_loss = sum(source.num_loss_tokens for source in self.sources)
        limit = f"{self.data.max_length:,} tokens"
        paired = self.sizes.shape[1] > 1
        facts = [
            f"{self.name}: {len(self.lengths):,} {'pairs' if paired else 'examples'}",
            f"{int(self.sizes.sum()):,} tokens ({num_loss:,} trained on)",
        ]
        facts += [f"{num_dropped:,} dropped as over {limit}"] * bool(num_dropped)
        facts += [f"{num_cut:,} cut to {limit}"] * bool(num_cut)
        facts += [f"{num_left_out:,} left out by the limit"] * bool(num_left_out)
        facts += describe_notes([part.store.index["notes"][part.used] for part in self.sources])
        if self.data.packing == "packed":
            facts.append(f"packed into {self.rows.num_rows:,} rows ({self.padding:.1%} padding)")
        return ", ".join(facts)


@dataclass(frozen=True)
class Datasets:
    """The training data, and the evaluation data if there is any.

    Attributes:
      evals: evaluation data by name; that without a name is "".
    """

    train: Split
    evals: Mapping[str, Split]

    @property
    def eval(self) -> Split | None:
        """The evaluation data without a name, if there is any."""
        return self.evals.get("")

    @property
    def splits(self) -> list[Split]:
        """The splits that there are."""
        return [self.train, *self.evals.values()]


def make_splits(
    data: DataSection, sources: Sequence[TokenisedSource], seed: int, cache: Path
) -> Datasets:
    """Divides the sources' examples into training and evaluation data.

    Raises:
      UserError: if a split has no examples.
    """
    named = [source for source in sources if source.eval_set]
    evals = make_named_splits(data, named, seed, cache)
    sources = [source for source in sources if not source.eval_set]
    indices = [source.store.index for source in sources]
    # All examples of a record are on one side, whatever the chat template made of it.
    digests = [i["record_digest"] for i in indices]
    undivided = [number for number, source in enumerate(sources) if source.is_eval is None]
    masks = [np.full(len(source.store), bool(source.is_eval)) for source in sources]
    if undivided:
        joined = choose_eval(
            np.concatenate([digests[number] for number in undivided]), data.eval_fraction, seed
        )
        ends = np.cumsum([len(digests[number]) for number in undivided])[:-1]
        for number, mask in zip(undivided, np.split(joined, ends), strict=True):
            masks[number] = mask
    if all(mask.all() for mask in masks):
        raise UserError(
            f"data: nothing is left to train on of {sum(map(len, masks))} records; "
            "lower data.eval_fraction, or name data.eval"
        )
    train_masks = [~mask for mask in masks]
    train = _make_split("training data", data, sources, train_masks, data.limit, seed, cache)
    if any(mask.any() for mask in masks):
        evals = {"": make_eval_split(data, sources, seed, cache, masks)} | evals
    return Datasets(train, evals)


def make_named_splits(
    data: DataSection, sources: Sequence[TokenisedSource], seed: int, cache: Path
) -> dict[str, Split]:
    """The evaluation data of whole sources by its name."""
    names = list(dict.fromkeys(source.eval_set for source in sources))
    return {
        name: make_eval_split(
            data, [source for source in sources if source.eval_set == name], seed, cache
        )
        for name in names
    }


def make_eval_split(
    data: DataSection,
    sources: Sequence[TokenisedSource],
    seed: int,
    cache: Path,
    masks: Sequence[np.ndarray] | None = None,
) -> Split:
    """The evaluation data: the examples that each source's mask selects, or all of them."""
    masks = masks or [np.ones(len(source.store), bool) for source in sources]
    name = f"evaluation data {sources[0].eval_set}".rstrip()
    return _make_split(name, data, sources, masks, data.eval_limit, seed, cache)


def _make_split(
    name: str,
    data: DataSection,
    sources: Sequence[TokenisedSource],
    masks: Sequence[np.ndarray],
    limit: int | None,
    seed: int,
    cache: Path,
) -> Split:
    present = [(source, mask) for source, mask in zip(sources, masks, strict=True) if mask.any()]
    fit = [fits(source.store.index, data) for source, _ in present]
    numbers = [np.flatnonzero(mask) for _, mask in present]
    used = sample_used(numbers, fit, limit, seed)
    parts = [
        SourceSplit(source.source, source.store, belong, use, can, data.max_length)
        for (source, _), belong, use, can in zip(present, numbers, used, fit, strict=True)
    ]
    parts = [part for part in parts if len(part.used)]
    if not parts:
        raise UserError(
            f"{name}: no example is left ({sum(map(len, numbers)):,} over data.max_length "
            f"{data.max_length:,}); raise it, or name other data"
        )
    packings = [
        pack(part.lengths, data.max_length, cache)
        if data.packing == "packed"
        else one_per_row(len(part.used))
        for part in parts
    ]
    source_rows = [
        SourceRows(packing.num_rows, part.source.weight)
        for packing, part in zip(packings, parts, strict=True)
    ]
    return Split(name, parts, concatenate(packings), source_rows, data)
