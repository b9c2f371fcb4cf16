"""From texts to tokens, and which of them are training targets."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from train.data.render import Rendered
from train.errors import UserError


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
    if not tokenizer.is_fast:
        raise UserError(
            "the tokenizer does not say which characters a token is from; "
            "the model's folder needs a tokenizer.json"
        )
    encoded = tokenizer(
        [text.text for text in texts],
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    begins = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    return [
        _example(text, np.asarray(ids, np.int32), characters, tokenizer, begins)
        for text, ids, characters in zip(
            texts, encoded["input_ids"], encoded.encodings, strict=True
        )
    ]


def _example(
    text: Rendered, tokens: np.ndarray, characters: Any, tokenizer: Any, begins: bool
) -> Example:
    def start(token: int) -> int:
        """The character that a token begins with."""
        first, last = characters.token_to_chars(token) or (0, 0)
        # Some tokenizers trim white space off a token's characters, all of it off one that has
        # nothing else: it stands before the place where it is said to be.
        return int(first) - (first == last)

    places, target = range(len(tokens)), np.zeros(len(tokens), bool)
    for begin, end in text.spans:
        target[bisect_left(places, begin, key=start) : bisect_left(places, end, key=start)] = True
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    while first is not None and tokens[:2].tolist() == [first, first]:
        tokens, target = tokens[1:], target[1:]
    if not text.bare:
        return Example(tokens, target)
    if begins and tokens[:1].tolist() != [first]:
        tokens, target = np.append(np.int32(first), tokens), np.append(False, target)
    if last is None:
        raise UserError(
            "the tokenizer has no end-of-text token to end the text with; "
            "set eos_token in its tokenizer_config.json"
        )
    # A text may bring its own end. Ending an empty completion is learned too.
    if not (target.any() and tokens[-1] == last):
        tokens, target = np.append(tokens, np.int32(last)), np.append(target, True)
    return Example(tokens, target)
