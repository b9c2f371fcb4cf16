"""Compressed files are read like others, under their own names."""

import bz2
import gzip
import lzma
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.data.sources import open_source

ROWS = b'{"text": "a"}\n{"text": "b"}\n'


def _zstd(data: bytes) -> bytes:
    import pyarrow

    packed: bytes = pyarrow.compress(data, "zstd", asbytes=True)
    return packed


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", _zstd)],
)
def test_records_of_a_compressed_file(
    read_all: Any, tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / f"a.jsonl.{suffix}"
    file.write_bytes(pack(ROWS))
    assert read_all(str(file)) == [
        {"text": "a", "where": f"{file}:1"},
        {"text": "b", "where": f"{file}:2"},
    ]


def test_every_file_of_data_in_an_archive(read_all: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("b/z.csv", "text\nc\n")
        archive.writestr("b/a.jsonl", ROWS)
        archive.writestr("README.md", "no data")
        archive.writestr("__MACOSX/b/a.jsonl", "no data")
    assert [row["where"] for row in read_all(str(file))] == [
        f"{file}/b/a.jsonl:1", f"{file}/b/a.jsonl:2", f"{file}/b/z.csv row 1"
    ]  # fmt: skip


def test_what_is_unpacked_goes_with_the_source(temporary_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(ROWS))
    source = open_source(str(file))
    assert len(list(temporary_folder.iterdir())) == 1
    digest = source.digest()
    del source
    assert not list(temporary_folder.iterdir())
    assert open_source(str(file)).digest() == digest


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl.gz", b"no", "a.jsonl.gz: cannot be decompressed (Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(ROWS)[:-9], "a.jsonl.gz: cannot be decompressed"),
        ("a.jsonl.zst", b"no", "a.jsonl.zst: cannot be decompressed"),
        ("a.zip", b"no", "a.zip: is no whole zip archive"),
        ("a.gz", gzip.compress(ROWS), "a.gz: is of an unknown kind; name a .jsonl"),
        ("a.tar.gz", gzip.compress(ROWS), "a.tar.gz: is of an unknown kind"),
        ("a.json.gz", gzip.compress(b"[1"), "a.json.gz:1: is not JSON"),
    ],
    # The bytes hold the time, and every process must collect the same tests.
    ids=["no gzip", "cut", "no zstd", "no zip", "no suffix", "tar", "no JSON"],
)
def test_what_cannot_be_read(
    source_error: Any, temporary_folder: Path, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    assert said in source_error(file)
    assert not list(temporary_folder.iterdir())
