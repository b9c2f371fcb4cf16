"""Rows in memory as a file of records, which a run can be resumed from."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import atomic_file


def keep_rows(rows: Iterable[Mapping[str, Any]], folder: Path) -> Path:
    """Writes rows to a JSONL file that is named by their content, and returns its path.

    Raises:
      UserError: for a row that is not JSON's.
    """
    lines = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(f"row {number} is a {type(row).__name__}; rows are dictionaries")
        try:
            lines.append(json.dumps(dict(row), allow_nan=False) + "\n")
        except (TypeError, ValueError) as error:
            raise UserError(f"row {number} cannot be written as JSON: {error}") from None
    if not lines:
        raise UserError("there are no rows to train on")
    content = "".join(lines).encode()
    file = folder / f"{hashlib.blake2b(content, digest_size=16).hexdigest()}.jsonl"
    if not file.exists() or file.read_bytes() != content:
        with atomic_file(file) as new:
            new.write_bytes(content)
    return file
