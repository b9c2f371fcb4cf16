"""A report on the data that a run would train on, before the run is paid for."""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..config import Config
from ..config.data import DataSection
from ..errors import DataError, UserError
from ..hf.hub import resolve_model
from ..hf.tokenizer import load_tokenizer
from ..model import load_model_config
from .chat import NOTES, RecordReader, Renderer
from .datasets import DataContext, load_sources
from .pairs import side_of
from .sampler import permutation
from .splits import Datasets, Split, TokenisedSource, make_splits
from .summary import describe_sources
from .tokenize import Example
from .validate import check_epoch, check_tokenizer, find_faults, find_pair_faults

_BARS = 12  # Bars of the histogram.
_TRIED = 200  # Texts whose round trip is tried, and examples searched for an end token.


def check(config: Config, console: Console, num_shown: int = 3) -> None:
    """Prints counts, lengths, fractions and a few examples with their loss masks.

    Raises:
      DataError: with everything that would make training on this data wrong.
    """
    base = resolve_model(config.model.path, config.model.revision)
    model = load_model_config(base)
    model.check_length(config.data.max_length, "data.max_length")
    vocab_size = model.vocab_size
    tokenizer = load_tokenizer(base, config.model.chat_template)
    if config.data.streaming:
        raise UserError(
            "data.streaming: a check reads all of the data; name a part of it in data.train and "
            "set data.streaming to false"
        )
    data = config.data.model_copy(update={"on_error": "report"})
    now = datetime.now()
    context = DataContext.of(config, tokenizer, vocab_size, console, now)
    sources = load_sources(data, context)
    stores = [source.store for source in sources]
    faults = find_faults(data, stores, vocab_size)
    if not context.pairs:
        faults += find_pair_faults(stores)
    try:
        check_tokenizer(tokenizer, vocab_size)
    except UserError as fault:
        faults.insert(0, str(fault))
    try:
        datasets = make_splits(data, sources, config.seed, context.cache)
    except UserError as fault:
        raise DataError([*faults, str(fault)]) from None
    _print_understood(sources, datasets.train, tokenizer, console)
    for split in datasets.splits:
        console.print(str(split), highlight=False, markup=False, soft_wrap=True)
        console.print(_count_table(split))
        for answer, lengths in _lengths(split).items():
            console.print(_length_histogram(f"{split.name}: tokens {answer}", lengths, split.data))
    console.print(_repetitions(datasets.train))
    console.print(_round_trip(sources, data, tokenizer, now))
    examples = datasets.train.examples
    for number in range(1, min(num_shown, len(datasets.train.lengths))):
        text = _mark(examples[number], tokenizer, data.max_length, console)
        console.print(text, soft_wrap=True)
    faults += _find_faults_of_the_whole(datasets, tokenizer, config.batch.size, config.seed)
    if faults:
        raise DataError(faults)
    console.print("nothing found that would make training wrong", style="bold green")


def _print_understood(
    sources: Sequence[TokenisedSource], train: Split, tokenizer: Any, console: Console
) -> None:
    """How the records were read, and the first example that is trained on."""
    for line in describe_sources([(source.source.path, source.store) for source in sources]):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for part in train.sources:
        notes = part.store.index[part.used]
        for bit, fact in NOTES.items():
            noted = notes["record"][notes["notes"] & bit != 0]
            if len(noted):
                place = (
                    f"{part.store.where(int(noted.min()))} is the first of {len(noted):,} {fact}"
                )
                console.print(place, highlight=False, markup=False, soft_wrap=True)
    console.print("an example, with what is trained on set off:")
    text = _mark(train.examples[0], tokenizer, train.data.max_length, console)
    console.print(text, soft_wrap=True)


def _count_table(split: Split) -> Table:
    packing = split.data.packing
    padding = "padded by batch" if packing == "bucketed" else f"{split.padding:.1%} padding"
    rows = f"{split.rows.num_rows:,} {'padded' if packing == 'none' else packing} rows"
    title = f"{split.name}: {rows}, {padding}"
    table = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left")
    table.add_column("source", overflow="fold")
    for name in ("used", "cut", "too long", "left out", "faulty", "tokens", "trained on"):
        table.add_column(name, justify="right")
    for part in split.sources:
        num_tokens = int(part.sizes.sum(dtype=np.int64))
        counts = [len(part.used), len(part.cut), part.num_dropped, part.num_left_out]
        counts += [len(part.store.faults), num_tokens]
        cells = [f"{count:,}" for count in counts]
        table.add_row(Text(part.source.path), *cells, f"{part.num_loss_tokens / num_tokens:.1%}")
    return table


def _lengths(split: Split) -> dict[str, np.ndarray]:
    """The tokens of each example or answer, before they are cut or dropped."""
    sizes = np.concatenate([part.store.sizes[part.numbers] for part in split.sources])
    names = ["an example"] if sizes.shape[1] == 1 else ["to the end of chosen", "… of rejected"]
    return dict(zip(names, sizes.T, strict=True))


def _length_histogram(title: str, lengths: np.ndarray, data: DataSection) -> Text:
    counts, edges = np.histogram(lengths, _BARS, (0, int(lengths.max()) + 1))
    text = Text(f"\n{title}, median {int(np.median(lengths)):,}\n")
    for count, (low, high) in zip(counts.tolist(), pairwise(edges.tolist()), strict=True):
        bar = "█" * -(-40 * count // int(counts.max()))
        over = "" if low <= data.max_length else "  over data.max_length"
        text.append(
            f"{int(np.ceil(low)):>9,} to {int(np.ceil(high)) - 1:<9,} {bar} {count:,}{over}\n"
        )
    return text


def _repetitions(split: Split) -> str:
    digests = split.digests
    return f"{len(digests) - len(np.unique(digests)):,} training examples repeat another one"


def _round_trip(
    sources: Sequence[TokenisedSource], data: DataSection, tokenizer: Any, now: datetime
) -> Text:
    """How many texts are the same after tokenising and decoding, and the first that is not."""
    num_tried = 0
    changed = []
    for source in sources:
        renderer = Renderer(RecordReader.of(source.source, data, now), tokenizer)
        records = np.unique(source.store.index["record"])
        drawn = permutation(len(records), 0)[: -(-_TRIED // len(sources))]
        for record in records[drawn].tolist():
            for rendered in renderer.render(source.store.records[record]):
                num_tried += 1
                ids = tokenizer(rendered.text, add_special_tokens=False).input_ids
                if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != rendered.text:
                    changed.append(source.store.where(record))
    summary = f"{num_tried - len(changed):,} of {num_tried:,} texts survive a round trip\n"
    return Text(summary + (f"the first that does not: {changed[0]}\n" if changed else ""))


def mark_loss(example: Example, tokenizer: Any, max_length: int) -> list[tuple[str, bool]]:
    """The parts of an example's text, and whether each has a loss."""
    tokens, loss_mask = example.tokens[:max_length], example.loss_mask[:max_length]
    edges = [0, *(np.flatnonzero(np.diff(loss_mask)) + 1).tolist(), len(tokens)]
    return [
        (
            tokenizer.decode(tokens[begin:end], clean_up_tokenization_spaces=False),
            bool(loss_mask[begin]),
        )
        for begin, end in pairwise(edges)
    ]


def _mark(example: Example, tokenizer: Any, max_length: int, console: Console) -> Text:
    """An example's text, in which what has a loss is in colour; without colour, in ⟦ ⟧.

    Of a preference pair, both answers, each after its prompt.
    """
    if example.tokens.ndim > 1:
        sides = [side_of(example, side) for side in (0, 1)]
        texts = [_mark(side, tokenizer, max_length, console) for side in sides]
        return Text.assemble("chosen: ", texts[0], "rejected: ", texts[1])
    text = Text()
    for piece, has_loss in mark_loss(example, tokenizer, max_length):
        if not has_loss:
            text.append(piece, style="dim")
        elif console.color_system and not console.no_color:  # A dumb terminal has none.
            text.append(piece, style="bold green")
        else:
            text.append(f"⟦{piece}⟧")
    return text.append("\n")


def _find_faults_of_the_whole(
    datasets: Datasets, tokenizer: Any, batch_size: int, seed: int
) -> list[str]:
    """Faults that are not those of a single record."""
    faults = []
    try:
        check_epoch(datasets.train.batches(batch_size, seed).rows_per_epoch, batch_size)
    except UserError as fault:
        faults.append(str(fault))
    if datasets.eval is not None:
        faults += _find_shared(datasets.train, datasets.eval)
    if not _trains_on_an_end_token(datasets.train, tokenizer):
        faults.append(
            f"data.train: none of the first {_TRIED} examples trains on an end token, so "
            "generation would not stop; check eos_token and the end of turn in the chat template"
        )
    return faults


def _find_shared(train: Split, evaluation: Split) -> list[str]:
    """The first evaluation example that is trained on, and how many others there are."""
    trained = train.digests
    for part in evaluation.sources:
        index = part.store.index[part.used]
        shared = index[np.isin(index["digest"], trained)]
        if len(shared):
            where = part.store.where(int(shared["record"][0]))
            return [
                f"{where}: is in the training data too, as are {len(shared) - 1:,} others; remove "
                "them from one of the two, or the eval loss means nothing"
            ]
    return []


def _trains_on_an_end_token(split: Split, tokenizer: Any) -> bool:
    special = [id for id, token in tokenizer.added_tokens_decoder.items() if token.special]
    examples = split.examples
    return any(
        bool(np.isin(tokens[loss_mask], [*special, tokenizer.eos_token_id]).any())
        for tokens, loss_mask in (
            examples[number] for number in range(min(_TRIED, len(split.lengths)))
        )
    )
