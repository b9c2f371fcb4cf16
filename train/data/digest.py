"""Digests that name cached files: equal where the contents are."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

# Of a sampled file: the number of pieces, and the bytes of each.
_PIECES, _PIECE = 64, 1 << 16


def digest(*parts: object) -> str:
    """The digest of several values, of which each counts as what `str` makes of it."""
    content = json.dumps([str(part) for part in parts]).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def digest_samples(paths: Sequence[Path]) -> str:
    """A digest of files that are too large to read whole: their sizes, and pieces all over them."""
    parts: list[object] = []
    for path in paths:
        size = path.stat().st_size
        with path.open("rb") as file:
            for number in range(_PIECES):
                file.seek(max(0, size - _PIECE) * number // (_PIECES - 1))
                parts.append(hashlib.blake2b(file.read(_PIECE)).hexdigest())
        parts.append(size)
    return digest(*parts)


def digest_files(paths: Sequence[Path]) -> str:
    """The digest of the files' contents, whatever their names and times are."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "blake2b").hexdigest())
    return digest(*digests)
