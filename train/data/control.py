"""Control tokens that a conversation's contents spell out, told from those of the template."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ..errors import UserError

Span = tuple[int, int]

# Around each token that a content spells out while a template renders it; no text has them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}]")


def pattern_of(tokens: Sequence[str] | frozenset[str]) -> re.Pattern[str]:
    """A pattern that finds the longest of the tokens at each place."""
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def find(value: Any, pattern: re.Pattern[str]) -> str | None:
    """The first control token in the strings of a value."""
    if isinstance(value, str):
        found = pattern.search(value)
        return found[0] if found else None
    items = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping | list | tuple):
        return None
    return next(filter(None, (find(item, pattern) for item in items)), None)


def mark(value: Any, pattern: re.Pattern[str]) -> Any:
    """The value with marks around each control token in its strings."""
    if isinstance(value, str):
        if _MARKS.search(value):
            raise UserError("has the character U+FDD0 or U+FDD1, which is not text; remove it")
        return pattern.sub(f"{_OPEN}\\g<0>{_CLOSE}", value)
    if isinstance(value, Mapping):
        return {key: mark(item, pattern) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mark(item, pattern) for item in value]
    return value


def unmark(text: str, spans: Sequence[Span]) -> tuple[str, list[Span], list[Span]]:
    """The text without marks, its spans moved, and the spans that were marked.

    A template may take marks apart: one that stands alone is removed.
    """
    marks = [found.start() for found in _MARKS.finditer(text)]
    kinds = "".join(text[place] for place in marks)
    spelled = [
        (marks[number] - number, marks[number + 1] - number - 1)
        for number in range(len(marks) - 1)
        if kinds[number : number + 2] == _OPEN + _CLOSE
    ]

    def moved(place: int) -> int:
        return place - sum(mark < place for mark in marks)

    return _MARKS.sub("", text), [(moved(a), moved(b)) for a, b in spans], spelled


class Pieces:
    """The tokens of a text that was encoded in pieces, as an `Encoding` has them."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._chars: list[Span] = []

    def add(self, encoding: Any, start: int, skip: int) -> None:
        """Appends a piece's tokens, but for those of its first `skip` characters."""
        for token, id in enumerate(encoding.ids):
            first, last = encoding.token_to_chars(token) or (0, 0)
            if last > skip:
                self.ids.append(id)
                self._chars.append((start + first - skip, start + last - skip))

    def token_to_chars(self, token: int) -> Span:
        """The characters that a token is from."""
        return self._chars[token]


def encode_spelled(text: str, spelled: Sequence[Span], tokenizer: Any) -> Pieces:
    """Encodes a text in which some control tokens are to be ordinary text.

    Raises:
      UserError: if the tokenizer makes a control token of them even as ordinary text.
    """
    backend, pieces, place = tokenizer.backend_tokenizer, Pieces(), 0
    for begin, end in spelled:
        _add(pieces, backend, text, (place, begin))
        before = len(pieces.ids)
        _add(pieces, _without_added_tokens(tokenizer), text, (begin, end))
        if tokenizer.convert_tokens_to_ids(text[begin:end]) in pieces.ids[before:]:
            raise UserError(
                f"the tokenizer has no way to write {text[begin:end]!r} as ordinary text; set "
                "data.control_tokens to keep or refuse"
            )
        place = end
    _add(pieces, backend, text, (place, len(text)))
    return pieces


def _add(pieces: Pieces, backend: Any, text: str, span: Span) -> None:
    begin, end = span
    if begin == end:
        return
    piece = text[begin:end]
    if begin and _begins_with_a_space(backend):
        # After a line break, which is dropped again, no space is put before the piece.
        encoding = backend.encode("\n" + piece, add_special_tokens=False)
        edges = [encoding.token_to_chars(token) for token in range(len(encoding.ids))]
        if all(edge is None or edge[1] <= 1 or edge[0] >= 1 for edge in edges):
            pieces.add(encoding, begin, 1)
            return
    pieces.add(backend.encode(piece, add_special_tokens=False), begin, 0)


def _begins_with_a_space(backend: Any) -> bool:
    """Whether the tokenizer puts a space before a text, as those of SentencePiece do."""
    first: str = backend.encode("a", add_special_tokens=False).tokens[0]
    return first.startswith("▁")


@lru_cache(maxsize=2)
def _without_added_tokens(tokenizer: Any) -> Any:
    from tokenizers import Tokenizer

    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    tree["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(tree))
