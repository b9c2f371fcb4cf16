"""Lengths in the header of a GGUF file that go beyond it are refused before the file is read."""

import struct
from pathlib import Path
from typing import Any

import pytest

from train.hf.gguf.bounds import check_lengths


def written(path: Path, *parts: bytes, keys: int = 1) -> Path:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, keys) + b"".join(parts))
    return path


KEY = struct.pack("<Q", 1) + b"k"


@pytest.mark.parametrize(
    "value",
    [
        struct.pack("<IIQ", 9, 4, 2**40),  # an array of numbers
        struct.pack("<IIQ", 9, 8, 2**40),  # of strings
        struct.pack("<IIQIQ", 9, 9, 2, 4, 2**40),  # of arrays
        struct.pack("<IQ", 8, 2**40),  # a string
        struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000,  # arrays of arrays
    ],
)
def test_a_length_beyond_the_file_is_refused(gguf: Any, tmp_path: Path, value: bytes) -> None:
    file = written(tmp_path / "a.gguf", KEY, value)
    with pytest.raises((ValueError, RecursionError)):
        check_lengths(file)
    gguf.refused(file, "a.gguf", "not a whole GGUF file", "download or convert it again")


def test_more_keys_than_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="states"):
        check_lengths(written(tmp_path / "a.gguf", keys=2**50))


def test_a_whole_file_passes(gguf: Any) -> None:
    check_lengths(gguf.write())
