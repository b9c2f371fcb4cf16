"""From texts to tokens, and which of them are training targets."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError
from .chat import Rendered


class Example(NamedTuple):
    """A text's tokens."""

    tokens: np.ndarray  # int32 [n]
    target: np.ndarray  # bool [n]: True where the token is learned


def encode(texts: Sequence[Rendered], tokenizer: Any) -> list[Example]:
    """Tokenises texts together, on all cores.

    A token is a target where it begins inside a span: one over a header and the answer is the
    header's. Bare text gets the beginning token that the tokenizer itself begins with, and its
    end-of-text token, neither of them twice.
    """
    return examples(texts, tokenise(texts, tokenizer), tokenizer)


def tokenise(texts: Sequence[Rendered], tokenizer: Any) -> Any:
    """The first half of `encode`: the tokenizer's own work, which lets other threads run."""
    if not tokenizer.is_fast:
        raise UserError(
            "the tokenizer does not say which characters a token is from; "
            "the model's folder needs a tokenizer.json"
        )
    # Called directly: transformers' own call copies all that it yields, which takes a sixth more.
    backend = tokenizer.backend_tokenizer
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    return backend.encode_batch([text.text for text in texts], add_special_tokens=False)


def examples(texts: Sequence[Rendered], encoded: Any, tokenizer: Any) -> list[Example]:
    """The second half of `encode`."""
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    begins = first is not None and tokenizer("").input_ids[:1] == [first]
    made = []
    for text, encoding in zip(texts, encoded, strict=True):
        ids = encoding.ids
        target = _targets(text, len(ids), encoding)
        while first is not None and ids[:2] == [first, first]:
            ids, target = ids[1:], target[1:]
        if text.bare:
            if last is None:
                raise UserError(
                    "the tokenizer has no end-of-text token to end the text with; "
                    "set eos_token in its tokenizer_config.json"
                )
            if begins and ids[:1] != [first]:
                ids, target = [first, *ids], b"\0" + target
            # A text may bring its own end. Ending an empty completion is learned too.
            if not (any(target) and ids[-1] == last):
                ids, target = [*ids, last], target + b"\1"
        made.append(Example(np.array(ids, np.int32), np.frombuffer(target, bool)))
    return made


def _targets(text: Rendered, count: int, characters: Any) -> bytes:
    """A byte a token: 1 where it is learned."""

    def start(token: int) -> int:
        """The character that a token begins with."""
        first, last = characters.token_to_chars(token) or (0, 0)
        # Some tokenizers trim white space off a token's characters, all of it off one that has
        # nothing else: it stands before the place where it is said to be.
        return int(first) - (first == last)

    target = bytearray(count)
    for begin, end in text.spans:
        low = bisect_left(range(count), begin, key=start)
        high = count if end >= len(text.text) else bisect_left(range(count), end, key=start)
        target[low:high] = b"\1" * (high - low)
    return bytes(target)
