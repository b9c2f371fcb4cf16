"""What was understood of the data, and what is wrong with it, in few lines."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from .chat import NOTES, Understood
from .pairs import Store

_SHOWN = 3  # Places of a kind of fault, ways of reading, columns.


def describe_sources(named: Iterable[tuple[str, Store]]) -> list[str]:
    """One line for each way in which each source's records were read."""
    lines: dict[str, None] = {}
    for name, store in named:
        lines |= dict.fromkeys(describe(name, store.understood))
    return list(lines)


def describe(name: str, understood: Sequence[tuple[Understood, int]]) -> list[str]:
    """One line for each of the commonest ways in which a source's records were read."""
    lines = [f"{name}: {count:,} records read as {_way(way)}" for way, count in understood[:_SHOWN]]
    others = sum(count for _, count in understood[_SHOWN:])
    return lines + [f"{name}: {others:,} records with other columns"] * bool(others)


def _way(way: Understood) -> str:
    reading, template = way.reading, "with" if way.templated else "without"
    unused = f", not used: {', '.join(reading.unused)}" if reading.unused else ""
    columns = ", ".join(reading.used)
    return f"{reading.format} (columns: {columns}{unused}), {template} the chat template"


def describe_notes(parts: Sequence[np.ndarray]) -> list[str]:
    """What is to be known of examples, each with their number; none where there are none.

    Args:
      parts: the bits of Rendered.notes of each, [N] for each source.
    """
    notes = np.concatenate(parts)
    counts = {fact: np.count_nonzero(notes & bit) for bit, fact in NOTES.items()}
    return [f"{count:,} {fact}" for fact, count in counts.items() if count]


def group_faults(faults: Iterable[tuple[str, str]]) -> list[str]:
    """One line for each kind of fault, with its first places.

    Args:
      faults: places and messages; those that differ in numbers and quoted words are of one kind.
    """
    kinds: dict[str, list[tuple[str, str]]] = {}
    for place, message in faults:
        kind = re.sub(r"'[^']*'|\([^()]*\)|\d[\d,]*", "#", message)
        kinds.setdefault(kind, []).append((place, message))
    return [_line(places) for places in kinds.values()]


def _line(places: Sequence[tuple[str, str]]) -> str:
    (place, message), *others = places
    if not others:
        return f"{place}: {message}"
    named = ", ".join(other for other, _ in others[: _SHOWN - 1])
    more = f" and {len(others) - _SHOWN + 1:,} more" if len(others) >= _SHOWN else ""
    return f"{place}: {message} (the same: {named}{more})"
