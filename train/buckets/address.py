"""Addresses, such as gs://bucket/folder, in contrast to paths."""

import re
from pathlib import Path

# The package that each scheme needs.
SCHEMES = {"gs": "gcsfs", "s3": "s3fs"}

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[^\x00-\x1f]+)?/?")


def is_address(text: str | Path) -> bool:
    """Whether a text is an address: `Path` would make a folder of its scheme's name."""
    return isinstance(text, str) and _ADDRESS.match(text) is not None


def check_place(text: str) -> str:
    """Refuses an address that no package here serves; returns the text, a path or an address.

    Raises:
      ValueError: if it is such an address.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None:
        return text
    if found[1] not in SCHEMES:
        raise ValueError(f"{text} is of an unknown kind; name a path, or gs:// or s3://")
    if not _BUCKET.fullmatch(found[2]):
        raise ValueError(f"{text} names no bucket; write {found[1]}://BUCKET/FOLDER")
    return text


def local_path(text: str) -> Path:
    """The path that a text is.

    Raises:
      ValueError: if it is an address.
    """
    if is_address(text):
        raise ValueError(f"{text} is an address, which is not served here; name a path")
    return Path(text)


def last_name(address: str) -> str:
    """The last part of an address."""
    return address.rstrip("/").rpartition("/")[2]


def join(address: str, name: str) -> str:
    """The address of a name below another."""
    return f"{address.rstrip('/')}/{name}"
