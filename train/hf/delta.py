"""Sparse deltas of model folders: a tuned model as its base and the entries that changed.

A delta is one safetensors file. Of every tensor that changed it holds the positions and the new
values, as gmt_jax.delta writes them, and of the small files (config.json, tokenizer, chat template)
those that the base does not have so. Its metadata hold the SHA-256 of every tensor before and
after. They are of single tensors, so that a wrong base is told by its first one, and so that it
does not matter into which files a model is cut. What is applied has the digests of the tuned
model, or is not written.
"""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pydantic
import safetensors

import gmt_jax.delta
from gmt_jax.delta import TensorDelta

from ..errors import UserError
from ..files import atomic_file, atomic_folder
from .compare import SMALL_FILES, check_alike, layouts, small_files, write_like
from .load import open_safetensors, open_weights
from .safetensors import Layout, as_bytes, write_safetensors

FORMAT, VERSION = "gmt-jax.delta", "1"


class _Tensor(pydantic.BaseModel, frozen=True, extra="forbid"):
    dtype: str
    shape: tuple[int, ...]
    changed: int  # entries
    base: str  # SHA-256 of the tensor's bytes, row-major
    tuned: str

    @property
    def layout(self) -> Layout:
        return Layout(self.dtype, self.shape)


class Contents(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What a delta is a delta of."""

    tensors: dict[str, _Tensor]
    files: dict[str, str]  # SHA-256 of the tuned model's small files

    @property
    def changed(self) -> int:
        return sum(tensor.changed for tensor in self.tensors.values())

    @property
    def entries(self) -> int:
        return sum(tensor.layout.entries for tensor in self.tensors.values())

    @property
    def density(self) -> float:
        return self.changed / max(self.entries, 1)

    @property
    def dtype(self) -> str:
        return ", ".join(sorted({tensor.dtype for tensor in self.tensors.values()}))

    def digest(self, of: Literal["base", "tuned"]) -> str:
        """One digest for a model's whole weights, whatever files they lie in."""
        rows = [[name, t.dtype, t.shape, getattr(t, of)] for name, t in self.tensors.items()]
        return _digest(json.dumps(sorted(rows)).encode())

    def metadata(self) -> dict[str, str]:
        """As a file has it; what follows from the rest is there for those who read only it."""
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

    One tensor of each is in memory at a time.

    Raises:
      UserError: if the tensors differ in name, type or shape, or if `out` is there already.
    """
    if out.exists():
        raise UserError(f"{out} is there already; choose another file with --out, or remove it")
    with (
        open_weights(base) as old,
        open_weights(tuned) as new,
        atomic_file(out) as file,
        tempfile.TemporaryFile(dir=file.parent) as spool,
    ):
        shapes = layouts(old, base)
        check_alike(shapes, base, layouts(new, tuned), tuned)
        parts: dict[str, Layout] = {}

        def add(name: str, dtype: str, array: np.ndarray) -> None:
            parts[name] = Layout(dtype, array.shape)
            spool.write(as_bytes(array))

        contents = Contents(tensors={}, files={})
        for name, layout in shapes.items():
            before, after = old.tensor(name), new.tensor(name)
            positions, values = gmt_jax.delta.extract(before, after)
            contents.tensors[name] = _Tensor(
                dtype=layout.dtype,
                shape=layout.shape,
                changed=values.size,
                base=_digest(as_bytes(before)),
                tuned=_digest(as_bytes(after)),
            )
            if values.size:
                add(f"positions/{name}", "U8", positions)
                add(f"values/{name}", layout.dtype, values)
        given = small_files(base)
        for name, content in small_files(tuned).items():
            contents.files[name] = _digest(content)
            if given.get(name) != content:
                add(f"files/{name}", "U8", np.frombuffer(content, np.uint8))
        # The header comes first in the file but is known last, so the parts have waited aside.
        spool.seek(0)
        write_safetensors(
            file,
            parts,
            lambda name: np.frombuffer(spool.read(parts[name].bytes), np.uint8),
            contents.metadata(),
        )
    return contents


def apply(base: Path, delta: Path, out: Path) -> None:
    """Writes the tuned model's folder, its weights cut into files as the base's are.

    One tensor is in memory at a time.

    Raises:
      UserError: if the delta is damaged or another base's, or if `out` is not empty.
    """
    with open_delta(delta) as opened, open_weights(base) as store:
        wanted = {name: tensor.layout for name, tensor in opened.contents.tensors.items()}
        check_alike(layouts(store, base), base, wanted, delta)
        with atomic_folder(out, replace=False) as folder:
            write_like(store, folder, lambda name: opened.tuned(name, store.tensor(name), base))
            given = small_files(base)
            for name in opened.contents.files:
                (folder / name).write_bytes(opened.file(name, given, base))


class Delta(NamedTuple):
    """An open delta."""

    path: Path
    contents: Contents
    handle: Any

    def tuned(self, name: str, before: np.ndarray, base: Path) -> np.ndarray:
        """A tensor of the tuned model, from the base's."""
        said = self.contents.tensors[name]
        if _digest(as_bytes(before)) != said.base:
            raise self._wrong_base(base, name)
        after = before
        if said.changed:
            part = TensorDelta(self._part(f"positions/{name}"), self._part(f"values/{name}"))
            try:
                after = gmt_jax.delta.apply(before, part)
            except ValueError:
                raise self._damaged(name) from None
        if _digest(as_bytes(after)) != said.tuned:
            raise self._damaged(name)
        return after

    def file(self, name: str, given: dict[str, bytes], base: Path) -> bytes:
        """A small file of the tuned model, of which the base has those given."""
        carried = f"files/{name}" in self.handle.keys()  # noqa: SIM118 (not a dict)
        content = self._part(f"files/{name}").tobytes() if carried else given.get(name, b"")
        if _digest(content) != self.contents.files[name]:
            raise self._damaged(name) if carried else self._wrong_base(base, name)
        return content

    def _part(self, name: str) -> np.ndarray:
        try:
            part: np.ndarray = self.handle.get_tensor(name)
        except safetensors.SafetensorError:
            raise self._damaged(name) from None
        return part

    def _damaged(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what} is damaged; download or extract it again")

    def _wrong_base(self, base: Path, name: str) -> UserError:
        return UserError(
            f"{base}: its {name} is not that of the base from which {self.path} was extracted; "
            "name that base"
        )


@contextlib.contextmanager
def open_delta(path: Path) -> Iterator[Delta]:
    """A delta whose metadata are whole and of the version that is read here.

    Raises:
      UserError: for any other file.
    """
    with open_safetensors(path) as handle:
        said = handle.metadata() or {}
        if said.get("format") != FORMAT:
            raise UserError(f"{path}: is not a delta; make one with gmt-train delta extract")
        if said.get("version") != VERSION:
            raise UserError(
                f"{path}: is a delta of version {said.get('version')}, and version {VERSION} is "
                "read here; install the gmt-jax that wrote it"
            )
        contents = _contents(said)
        if contents is None:
            raise UserError(f"{path}: its metadata are damaged; download or extract it again")
        yield Delta(path, contents, handle)


def _contents(said: dict[str, str]) -> Contents | None:
    """What the metadata say, if they agree with themselves."""
    try:
        contents = Contents.model_validate_json(said["contents"])
        whole = contents.metadata() == said
    except (KeyError, ValueError):  # a ValidationError is a ValueError
        return None
    # Names from a file become paths, so only known ones are taken.
    return contents if whole and contents.files.keys() <= set(SMALL_FILES) else None


def describe(path: Path) -> str:
    """What a delta holds, for people."""
    with open_delta(path) as delta:
        contents, parts = delta.contents, delta.handle.keys()
    tensors = contents.tensors.values()
    weights = sum(tensor.layout.bytes for tensor in tensors)
    size = path.stat().st_size
    carried = [name for name in contents.files if f"files/{name}" in parts]
    return "\n".join(
        f"{label:<15} {value}"
        for label, value in [
            ("base", contents.digest("base")),
            ("tuned", contents.digest("tuned")),
            ("dtype", contents.dtype),
            ("tensors changed", f"{sum(t.changed > 0 for t in tensors)} of {len(tensors)}"),
            (
                "entries changed",
                f"{contents.changed:,} of {contents.entries:,} ({contents.density:.4%})",
            ),
            ("size", f"{size:,} bytes, {size / max(weights, 1):.2%} of the weights' {weights:,}"),
            ("files carried", ", ".join(carried) or "none"),
        ]
    )


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()
