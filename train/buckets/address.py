"""Addresses, such as gs://bucket/folder, in contrast to paths."""

import re
from pathlib import Path

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_address(text: str) -> bool:
    """Whether a text is an address: `Path` would make a folder of its scheme's name."""
    return _ADDRESS.match(text) is not None


def local_path(text: str) -> Path:
    """The path that a text is.

    Raises:
      ValueError: if it is an address.
    """
    if is_address(text):
        raise ValueError(f"{text} is an address, which is not served here; name a path")
    return Path(text)
