"""Reads a GGUF file: its metadata, with types checked, and its tensors, dequantised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFValueType, ReaderTensor
from gguf.quants import dequantize

from ...errors import UserError
from .bounds import check_lengths

T = TypeVar("T")


@dataclass(frozen=True)
class Metadata:
    """The key-value section of a GGUF file; a value of an unexpected type is an error.

    Attributes:
      source: the file, for messages.
      values: the values by key, as Python objects.
    """

    source: Path
    values: Mapping[str, Any]

    def get(self, key: str, kind: type[T]) -> T | None:
        """The value of a key, or None where the file does not have it."""
        value = self.values.get(key)
        if value is None:
            return None
        # In Python a bool is an int, but a layer count of True means a broken file.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(key, f"is {_brief(value)}, expected a single {kind.__name__}")
        return value

    def require(self, key: str, kind: type[T]) -> T:
        """The value of a key without which nothing can be imported."""
        value = self.get(key, kind)
        if value is None:
            raise self.error(key, "is missing; use a GGUF file made by a current converter")
        return value

    def get_list(self, key: str, kind: type[T]) -> list[T] | None:
        """An array with entries of one type, or None where the file does not have it."""
        values = self.get(key, list)
        if values is not None and not all(isinstance(value, kind) for value in values):
            raise self.error(key, f"has entries that are not {kind.__name__}")
        return values

    def error(self, key: str, problem: str) -> UserError:
        """An error about the value of a key."""
        return UserError(f"{self.source}: {key} {problem}")


def open_gguf(source: Path) -> GGUFReader:
    """Opens a whole GGUF file of this machine's byte order.

    Raises:
      UserError: for any other file.
    """
    if not source.is_file():
        raise UserError(f"{source}: no such file; give the path of a .gguf file")
    try:
        check_lengths(source)
        reader = GGUFReader(source)
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from error
    # Which of these the reader raises depends on where in the file the bytes run out.
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{source}: not a whole GGUF file ({reason}); download or convert it again"
        ) from error
    if reader.byte_order != "I":
        raise UserError(f"{source}: has the other byte order; convert it for this machine")
    return reader


def read_metadata(source: Path, reader: GGUFReader) -> Metadata:
    """All metadata of an open file.

    Raises:
      UserError: if a value cannot be read, such as text that is not UTF-8.
    """
    values = {}
    for key, field in reader.fields.items():
        try:
            value = field.contents()
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{source}: {key} cannot be read ({error}); download or convert it again"
            ) from error
        if field.types == [GGUFValueType.FLOAT32]:
            # The shortest decimal that is this float32, such as the 1e-05 that its author wrote.
            value = float(str(np.float32(value)))
        values[key] = value
    return Metadata(source, values)


def dequantized(source: Path, tensor: ReaderTensor) -> npt.NDArray[np.float32]:
    """A tensor as float32.

    Raises:
      UserError: if its quantisation is not supported, its data do not fit it, or an entry is not
        finite.
    """
    try:
        weights: npt.NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise UserError(
            f"{source}: {tensor.name} has the type {tensor.tensor_type.name}, which cannot be "
            "dequantised; use a file of another quantisation, such as Q8_0"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{source}: {tensor.name} has other data than its shape says ({error}); download or "
            "convert it again"
        ) from error
    if not np.isfinite(weights).all():
        raise UserError(f"{source}: {tensor.name} is not finite; download or convert it again")
    return weights


def shortened(items: Sequence[str], limit: int = 8) -> str:
    """The first items, and how many more there are, for a message."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return "; ".join(items[:limit]) + more


def _brief(value: Any) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)[:60]
