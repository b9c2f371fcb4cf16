"""Compressed files as records: unpacked into a temporary folder while they are open."""

import bz2
import gzip
import lzma
import shutil
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..errors import UserError
from .digest import digest_files

SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip")


class UnpackedSource:
    """The records of a file that was compressed, under the compressed file's name.

    Args:
      source: the unpacked file's records.
      unpacked: that file.
      name: what positions call it.
    """

    def __init__(self, source: Any, unpacked: Path, name: str, compressed: Path) -> None:
        self._source, self._unpacked, self._name = source, unpacked, name
        self._compressed = compressed
        weakref.finalize(self, shutil.rmtree, unpacked.parent, ignore_errors=True)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record: dict[str, Any] = self._source[index]
        return record

    def where(self, index: int) -> str:
        return str(self._source.where(index)).replace(str(self._unpacked), self._name)

    def digest(self) -> str:
        return digest_files([self._compressed])


def open_compressed(path: Path, open_file: Callable[[Path], Any]) -> list[UnpackedSource]:
    """Opens a compressed file, or the files of data in a zip archive.

    Args:
      open_file: opens an unpacked file.

    Raises:
      UserError: if it cannot be decompressed, or is no file of data then.
    """
    opened = []
    try:
        for unpacked, name in _unpack(path):
            try:
                source = open_file(unpacked)
            except UserError as fault:
                shutil.rmtree(unpacked.parent, ignore_errors=True)
                raise UserError(str(fault).replace(str(unpacked), name)) from None
            opened.append(UnpackedSource(source, unpacked, name, path))
    except (OSError, EOFError, RuntimeError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path}: cannot be decompressed ({error}); fetch it again") from None
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: is no whole zip archive ({error}); fetch it again") from None
    return opened


def _unpack(path: Path) -> Iterator[tuple[Path, str]]:
    """The unpacked files, each in a temporary folder of its own, with the names to show."""
    suffix = path.suffix.lower()
    if suffix != ".zip":
        with _open_stream(path, suffix) as stream:
            yield _copy(stream, path.stem), str(path)
        return
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if _is_data(name)]
        if not members:
            raise UserError(f"{path}: holds no .jsonl, .json, .parquet or .csv file")
        for member in sorted(members):
            with archive.open(member) as stream:
                yield _copy(cast("BinaryIO", stream), Path(member).name), f"{path}/{member}"


def _open_stream(path: Path, suffix: str) -> BinaryIO:
    match suffix:
        case ".gz":
            return cast("BinaryIO", gzip.open(path))
        case ".bz2":
            return cast("BinaryIO", bz2.open(path))
        case ".xz":
            return cast("BinaryIO", lzma.open(path))
    # The standard library reads no zstd before Python 3.14; `datasets` needs pyarrow anyway.
    import pyarrow

    file = pyarrow.OSFile(str(path))
    return cast("BinaryIO", pyarrow.CompressedInputStream(file, "zstd"))


def _is_data(member: str) -> bool:
    hidden = member.startswith("__MACOSX/") or Path(member).name.startswith(".")
    return not hidden and member.lower().endswith((".jsonl", ".json", ".parquet", ".csv"))


def _copy(stream: BinaryIO, name: str) -> Path:
    unpacked = Path(tempfile.mkdtemp(prefix="gmt-train-")) / name
    try:
        with unpacked.open("wb") as out:
            shutil.copyfileobj(stream, out, 1 << 24)
    except BaseException:
        shutil.rmtree(unpacked.parent, ignore_errors=True)
        raise
    return unpacked
