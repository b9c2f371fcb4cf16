"""Sparse deltas of model folders: a tuned model stored as the entries that differ from its base.

A delta is one safetensors file. For every tensor that changed it holds the positions and the new
values, encoded by gmt_jax.delta, and of the small files (config.json, tokenizer, chat template)
those that differ from the base's. Its metadata hold the SHA-256 of every tensor before and after,
one per tensor, so that a wrong base is detected at its first tensor and the split of a model into
files does not matter. `apply` writes a model only if it has the digests of the tuned one.
"""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pydantic
import safetensors

import gmt_jax.delta

from ..errors import UserError
from ..files import atomic_file, atomic_folder
from .compare import (
    Tuned,
    check_alike,
    is_small_file,
    open_tuned,
    small_files,
    tensor_specs,
    write_like,
    write_small_file,
)
from .safetensors import (
    DTYPES,
    TensorSpec,
    as_bytes,
    open_safetensors,
    open_weights,
    write_safetensors,
)

FORMAT, VERSION = "gmt-jax.delta", "1"


class _Tensor(pydantic.BaseModel, frozen=True, extra="forbid"):
    dtype: str
    shape: tuple[int, ...]
    changed: int  # number of entries
    base: str  # SHA-256 of the tensor's bytes, row-major
    tuned: str

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.dtype, self.shape)


class Contents(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The models of which a file is the delta: every tensor, and the tuned model's small files."""

    tensors: dict[str, _Tensor]
    files: dict[str, str]  # SHA-256 of the tuned model's small files, by name

    @property
    def num_changed(self) -> int:
        return sum(tensor.changed for tensor in self.tensors.values())

    @property
    def num_entries(self) -> int:
        return sum(tensor.spec.num_entries for tensor in self.tensors.values())

    @property
    def density(self) -> float:
        """The fraction of all entries that changed."""
        return self.num_changed / max(self.num_entries, 1)

    @property
    def dtype(self) -> str:
        """The types of the tensors, comma-separated."""
        return ", ".join(sorted({tensor.dtype for tensor in self.tensors.values()}))

    def digest(self, model: Literal["base", "tuned"]) -> str:
        """One digest for all weights of a model, however they are split into files."""
        rows = [[name, t.dtype, t.shape, getattr(t, model)] for name, t in self.tensors.items()]
        return _digest(json.dumps(sorted(rows)).encode())

    def metadata(self) -> dict[str, str]:
        """The file's metadata; all but `contents` is a summary for other readers."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "base": self.digest("base"),
            "tuned": self.digest("tuned"),
            "density": f"{self.density:.6g}",
            "dtype": self.dtype,
            "contents": self.model_dump_json(),
        }


def extract(base: Path, tuned: Path, out: Path) -> Contents:
    """Writes the delta that turns one model's folder into another's.

    One tensor of each model is in memory at a time.

    Raises:
      UserError: if the tensors differ in name, type or shape, or if `out` exists.
    """
    check_new(out)
    with open_tuned(tuned) as model:
        return extract_model(base, model, out)


def check_new(out: Path) -> None:
    """Raises UserError if there is a file already where a delta is to be written."""
    if out.exists():
        raise UserError(f"{out} exists; choose another file with --out, or remove it")


def extract_model(base: Path, tuned: Tuned, out: Path) -> Contents:
    """`extract` of a model that need not be in files."""
    with (
        open_weights(base) as old,
        atomic_file(out) as file,
        tempfile.TemporaryFile(dir=file.parent) as spool,
    ):
        specs = tensor_specs(old)
        check_alike(specs, base, tuned.specs, tuned.source)
        parts: dict[str, TensorSpec] = {}

        def add(name: str, dtype: str, array: np.ndarray) -> None:
            parts[name] = TensorSpec(dtype, array.shape)
            spool.write(as_bytes(array))

        contents = Contents(tensors={}, files={})
        for name, spec in specs.items():
            before, after = old.tensor(name), tuned.tensor(name)
            positions, values = gmt_jax.delta.changes(before, after)
            contents.tensors[name] = _Tensor(
                dtype=spec.dtype,
                shape=spec.shape,
                changed=values.size,
                base=_digest(as_bytes(before)),
                tuned=_digest(as_bytes(after)),
            )
            if values.size:
                add(f"positions/{name}", "U8", positions)
                add(f"values/{name}", spec.dtype, values)
        base_files = small_files(base)
        for name, content in tuned.files.items():
            contents.files[name] = _digest(content)
            if base_files.get(name) != content:
                add(f"files/{name}", "U8", np.frombuffer(content, np.uint8))
        # The header is first in the file but known last, so the parts are copied from the spool.
        spool.seek(0)
        write_safetensors(
            file,
            parts,
            lambda name: np.frombuffer(spool.read(parts[name].num_bytes), np.uint8),
            contents.metadata(),
        )
    return contents


def apply(base: Path, delta: Path, out: Path) -> None:
    """Writes the tuned model's folder, its weights split into files as the base's are.

    One tensor is in memory at a time.

    Raises:
      UserError: if the delta is damaged or another base's, or if `out` is not empty.
    """
    with open_delta(delta) as opened, open_weights(base) as reader:
        specs = {name: tensor.spec for name, tensor in opened.contents.tensors.items()}
        check_alike(tensor_specs(reader), base, specs, delta)
        with atomic_folder(out, replace=False) as folder:
            write_like(reader, folder, lambda name: opened.tensor(name, reader.tensor(name), base))
            base_files = small_files(base)
            for name in opened.contents.files:
                write_small_file(folder, name, opened.file(name, base_files, base))


class Delta(NamedTuple):
    """An open delta."""

    path: Path
    contents: Contents
    handle: Any  # safetensors.safe_open, whose methods have no types

    def tensor(self, name: str, before: np.ndarray, base: Path) -> np.ndarray:
        """A tensor of the tuned model, from the base's."""
        expected = self.contents.tensors[name]
        if _digest(as_bytes(before)) != expected.base:
            raise self._wrong_base(base, name)
        after = before
        if expected.changed:
            positions, values = self._part(f"positions/{name}"), self._part(f"values/{name}")
            try:
                after = gmt_jax.delta.put(before, positions, values)
            except ValueError:
                raise self._damaged(name) from None
        if _digest(as_bytes(after)) != expected.tuned:
            raise self._damaged(name)
        return after

    def file(self, name: str, base_files: Mapping[str, bytes], base: Path) -> bytes:
        """A small file of the tuned model: the delta's, or else the base's."""
        stored = f"files/{name}" in self.handle.keys()  # noqa: SIM118 (not a dict)
        content = self._part(f"files/{name}").tobytes() if stored else base_files.get(name, b"")
        if _digest(content) != self.contents.files[name]:
            raise self._damaged(name) if stored else self._wrong_base(base, name)
        return content

    def _part(self, name: str) -> np.ndarray:
        try:
            part: np.ndarray = self.handle.get_tensor(name)
        except safetensors.SafetensorError:
            raise self._damaged(name) from None
        return part

    def _damaged(self, name: str) -> UserError:
        return UserError(f"{self.path}: {name} is damaged; download or extract it again")

    def _wrong_base(self, base: Path, name: str) -> UserError:
        return UserError(
            f"{base}: its {name} is not that of the base from which {self.path} was extracted; "
            "name that base"
        )


@contextlib.contextmanager
def open_delta(path: Path) -> Iterator[Delta]:
    """A delta whose metadata are consistent and have the version that is supported.

    Raises:
      UserError: for any other file.
    """
    with open_safetensors(path) as handle:
        metadata = handle.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise UserError(f"{path}: is not a delta; make one with gmt-train delta extract")
        if metadata.get("version") != VERSION:
            raise UserError(
                f"{path}: is a delta of version {metadata.get('version')}, and version {VERSION} "
                "is read here; install the gmt-jax that wrote it"
            )
        contents = _parse(metadata)
        if contents is None:
            raise UserError(f"{path}: its metadata are damaged; download or extract it again")
        yield Delta(path, contents, handle)


def _parse(metadata: dict[str, str]) -> Contents | None:
    """The contents, or None where the metadata are incomplete or contradict themselves."""
    try:
        contents = Contents.model_validate_json(metadata["contents"])
        consistent = contents.metadata() == metadata
    except (KeyError, ValueError):  # a ValidationError is a ValueError
        return None
    # Names from a file become paths, so only known ones are accepted.
    known = all(map(is_small_file, contents.files))
    known = known and all(tensor.dtype in DTYPES for tensor in contents.tensors.values())
    return contents if consistent and known else None


def describe(path: Path) -> str:
    """A delta's contents as a table for the screen."""
    with open_delta(path) as delta:
        contents, parts = delta.contents, delta.handle.keys()
    tensors = contents.tensors.values()
    num_bytes = sum(tensor.spec.num_bytes for tensor in tensors)
    size = path.stat().st_size
    files = [name for name in contents.files if f"files/{name}" in parts]
    rows = {
        "base": contents.digest("base"),
        "tuned": contents.digest("tuned"),
        "dtype": contents.dtype,
        "tensors changed": f"{sum(t.changed > 0 for t in tensors)} of {len(tensors)}",
        "entries changed": (
            f"{contents.num_changed:,} of {contents.num_entries:,} ({contents.density:.4%})"
        ),
        "size": f"{size:,} bytes, {size / max(num_bytes, 1):.2%} of the weights' {num_bytes:,}",
        "files carried": ", ".join(files) or "none",
    }
    return "\n".join(f"{label:<15} {value}" for label, value in rows.items())


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()
