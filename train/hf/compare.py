"""Model folders tensor by tensor: two are compared, and a third is written from them."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ..errors import UserError
from .export import COMPANIONS
from .load import INDEX, Store, name_list
from .safetensors import WIDTHS, Layout, write_safetensors

SMALL_FILES = ("config.json", *COMPANIONS)


def layouts(store: Store, folder: Path) -> dict[str, Layout]:
    """The layout of every tensor of a model.

    Raises:
      UserError: if two files hold the same tensor, or one is of a type that is not read.
    """
    if store.twice:
        raise UserError(f"{folder}: in two files: {name_list(store.twice)}; remove one of them")
    found = {}
    for name in sorted(store.where):
        part = store.slices(name)
        found[name] = Layout(part.get_dtype(), tuple(part.get_shape()))
    strange = [name for name, layout in found.items() if layout.dtype not in WIDTHS]
    if strange:
        raise UserError(
            f"{folder}: of a type that is not supported: {name_list(strange)}; "
            f"convert them to one of {', '.join(WIDTHS)}"
        )
    return found


def check_alike(
    base: Mapping[str, Layout], base_said: object, other: Mapping[str, Layout], other_said: object
) -> None:
    """Refuses two models that differ in a tensor's name, type or shape, and names all of them."""
    faults = {
        f"only in {base_said}": [name for name in base if name not in other],
        f"only in {other_said}": [name for name in other if name not in base],
    }
    for name in sorted(base.keys() & other.keys()):
        here, there = base[name], other[name]
        if here.dtype != there.dtype:
            said = f"{here.dtype} in {base_said} but {there.dtype} in {other_said}"
        elif here.shape != there.shape:
            said = f"{list(here.shape)} in {base_said} but {list(there.shape)} in {other_said}"
        else:
            continue
        faults.setdefault(said, []).append(name)
    found = "; ".join(f"{said}: {name_list(names)}" for said, names in faults.items() if names)
    if found:
        raise UserError(
            f"the tensors do not match: {found}; both must be one model, stored in one type"
        )


def small_files(folder: Path) -> dict[str, bytes]:
    """What a model needs beside its weights, as far as it is there: file by file."""
    there = [folder / name for name in SMALL_FILES if (folder / name).is_file()]
    return {file.name: file.read_bytes() for file in there}


def write_like(base: Store, folder: Path, read: Callable[[str], np.ndarray]) -> None:
    """Writes tensors to files of the same names, order and index as the base's."""
    for file in base.files:
        names = file.handle.offset_keys()
        parts = {name: file.handle.get_slice(name) for name in names}
        wanted = {n: Layout(p.get_dtype(), tuple(p.get_shape())) for n, p in parts.items()}
        write_safetensors(folder / file.path.name, wanted, read, file.handle.metadata() or {})
    index = base.files[0].path.with_name(INDEX)
    if base.files[0].path.name != "model.safetensors" and index.is_file():
        shutil.copyfile(index, folder / INDEX)
