"""Texts as tokens with a loss mask, and an index of what is known of each example."""

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError
from .chat import EQUAL_ANSWERS, PAIR, Rendered
from .control import encode_spelled

Fault = tuple[int, str]  # The number of a record, and why it cannot be trained on.


class Example(NamedTuple):
    """The tokens of a text.

    Attributes:
      tokens: int32 [T].
      loss_mask: bool [T], True where the token has a loss.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray


# What is known of an example without reading its tokens.
INDEX = np.dtype(
    [
        ("record", "<i8"),  # The record that it comes from, counting from 0.
        ("length", "<i4"),  # Tokens.
        ("num_loss_tokens", "<i4"),
        (
            "first_loss_token",
            "<i4",
        ),  # Its position; the first token, which nothing predicts, aside
        # Of a pair's answer: the first one that is not the other answer's too.
        ("highest_token", "<i4"),
        ("digest", "<u8"),  # Equal for equal tokens.
        ("record_digest", "<u8"),  # Equal for records that mean the same.
        ("notes", "<u1"),  # Bits of Rendered.notes.
    ]
)


def encode(texts: Sequence[Rendered], tokenizer: Any) -> list[Example]:
    """Tokenises texts together, on all cores.

    A token has a loss if it begins inside a span: one that covers a header and the beginning of an
    answer has none. Plain text gets the beginning token that the tokenizer itself adds, and its
    end-of-text token; neither is added twice.

    Raises:
      UserError: if the tokenizer has no offsets, or plain text no end-of-text token.
    """
    return to_examples(texts, encode_batch(texts, tokenizer), tokenizer)


def encode_batch(texts: Sequence[Rendered], tokenizer: Any) -> Any:
    """The first half of `encode`: the tokenizer's own work, which lets other threads run."""
    if not tokenizer.is_fast:
        raise UserError(
            "the tokenizer does not say which characters a token is from; "
            "the model's folder needs a tokenizer.json"
        )
    # Called directly: the call of transformers copies every result, which takes a sixth more time.
    backend = tokenizer.backend_tokenizer
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    whole = [text.text for text in texts if not text.spelled]
    encodings = iter(backend.encode_batch(whole, add_special_tokens=False))
    return [
        encode_spelled(text.text, text.spelled, tokenizer) if text.spelled else next(encodings)
        for text in texts
    ]


def to_examples(texts: Sequence[Rendered], encodings: Any, tokenizer: Any) -> list[Example]:
    """The second half of `encode`."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    adds_bos = bos is not None and tokenizer("").input_ids[:1] == [bos]
    examples = []
    for text, encoding in zip(texts, encodings, strict=True):
        ids = encoding.ids
        mask = _loss_mask(text, len(ids), encoding)
        while bos is not None and ids[:2] == [bos, bos]:
            ids, mask = ids[1:], mask[1:]
        if text.plain:
            if eos is None:
                raise UserError(
                    "the tokenizer has no end-of-text token to end the text with; "
                    "set eos_token in its tokenizer_config.json"
                )
            if adds_bos and ids[:1] != [bos]:
                ids, mask = [bos, *ids], b"\0" + mask
            # A text may end with the token already. The end of an empty completion has a loss too.
            if not (any(mask) and ids[-1] == eos):
                ids, mask = [*ids, eos], mask + b"\1"
        examples.append(Example(np.array(ids, np.int32), np.frombuffer(bytearray(mask), bool)))
    align_pairs(texts, examples)
    return examples


def _loss_mask(text: Rendered, count: int, encoding: Any) -> bytes:
    """One byte a token: 1 where it has a loss."""

    def start(token: int) -> int:
        """The character that a token begins with."""
        first, last = encoding.token_to_chars(token) or (0, 0)
        # Some tokenizers trim white space off a token's characters, and all of it off a token that
        # has nothing else: such a token is reported one character after it.
        return int(first) - (first == last)

    mask = bytearray(count)
    for begin, end in text.spans:
        low = bisect_left(range(count), begin, key=start)
        high = count if end >= len(text.text) else bisect_left(range(count), end, key=start)
        mask[low:high] = b"\1" * (high - low)
    return bytes(mask)


def align_pairs(texts: Sequence[Rendered], examples: Sequence[Example]) -> None:
    """Lets both answers of a preference pair have a loss from the same token on.

    It is the first one at which the two differ or one of them has a loss: where a token holds the
    end of the prompt and the beginning of one answer, the other answer's tokens of that text are
    learned too, so that both continue the same tokens.
    """
    for chosen, rejected in _pairs(texts, examples):
        starts = [_first(example.loss_mask) for example in (chosen, rejected)]
        start = min(_first_difference(chosen, rejected), *starts)
        for example, end in zip((chosen, rejected), starts, strict=True):
            if end < len(example.loss_mask):
                example.loss_mask[start:end] = True


def _pairs(
    texts: Sequence[Rendered], examples: Sequence[Example]
) -> Iterator[tuple[Example, Example]]:
    halves = (example for text, example in zip(texts, examples, strict=True) if text.notes & PAIR)
    return zip(halves, halves, strict=True)


def _first(loss_mask: np.ndarray) -> int:
    """The first token with a loss, or the number of tokens."""
    return int(np.argmax(loss_mask)) if loss_mask.any() else len(loss_mask)


def _first_difference(chosen: Example, rejected: Example) -> int:
    """The number of tokens that two examples begin with alike."""
    count = min(len(chosen.tokens), len(rejected.tokens))
    differ = chosen.tokens[:count] != rejected.tokens[:count]
    return int(np.argmax(differ)) if differ.any() else count


def index_examples(
    records: Sequence[int], texts: Sequence[Rendered], examples: Sequence[Example]
) -> np.ndarray:
    """The INDEX [N] of examples, given the number of the record that each comes from."""
    index = np.empty(len(examples), INDEX)
    rows = zip(records, texts, examples, strict=True)
    for number, (record, text, (tokens, loss_mask)) in enumerate(rows):
        mask = loss_mask.tobytes()  # Bytes are searched several times as fast as short arrays.
        content = int.from_bytes(hashlib.blake2b(tokens, digest_size=8).digest(), "little")
        first = mask.find(b"\1", 1)  # Nothing precedes the first token: it cannot be predicted.
        index[number] = (
            record,
            len(tokens),
            mask.count(b"\1"),
            first,
            tokens.max(initial=0),
            content,
            text.record_digest,
            text.notes,
        )
    pairs = np.flatnonzero(index["notes"] & PAIR)
    for first, both in zip(pairs[::2], _pairs(texts, examples), strict=True):
        for place in (first, first + 1):
            if index["first_loss_token"][place] >= 0:
                index["first_loss_token"][place] = max(
                    index["first_loss_token"][place], _first_difference(*both)
                )
    return index


def without_loss(index: np.ndarray) -> list[Fault]:
    """The records of an INDEX that have no token with a loss, or a pair of equal answers."""
    faults = [
        (record, "has no tokens to train on; add an assistant turn or text, or remove the record")
        for record in index["record"][index["first_loss_token"] < 0].tolist()
    ]
    pairs = np.flatnonzero(index["notes"] & PAIR)
    digest = index["digest"]
    equal = pairs[::2][digest[pairs[::2]] == digest[pairs[1::2]]]
    return faults + [(record, EQUAL_ANSWERS) for record in index["record"][equal].tolist()]
