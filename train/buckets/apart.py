"""Checkpoints in a bucket of a run whose processes share no folder.

Orbax writes and reads them there, each process its own shards. Process 0 vouches for what all have
read back: every object's digest is computed from the bucket, by one of the processes.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..distributed.processes import all_true, is_main_process, process_share, wait_for_all
from ..errors import UserError
from ..manifest import NAME as MANIFEST
from ..manifest import (
    Advance,
    DamagedError,
    Manifest,
    Verify,
    check_folder,
    compare,
    file_digests,
    manifest_text,
    read_manifest,
)
from .mirror import Mirror, bring_for_all, mirror_of
from .store import Object

_PART = "digests-"  # Objects by which processes tell process 0 what they have read back.


def own_mirror(path: Path) -> Mirror | None:
    """The mirror that a path is in, if each process of the run has its own."""
    mirror = mirror_of(path)
    return mirror if mirror is not None and mirror.apart else None


def place(folder: Path) -> str:
    """Where orbax reads a checkpoint: its address, if processes share no folder."""
    mirror = own_mirror(folder)
    return str(folder) if mirror is None else f"{mirror.address}/{mirror.name(folder)}"


def commit(mirror: Mirror, folder: Path, facts: Mapping[str, Any]) -> None:
    """Vouches for a checkpoint that orbax has written; all processes call it together.

    The records are uploaded before it: it counts with its manifest.
    """
    there, (number, parts) = mirror.name(folder), process_share()
    wait_for_all(f"writing {place(folder)}")
    objects = mirror.store.objects(there)
    for name in [name for name in objects if name.startswith(f"{there}/{_PART}")]:
        del objects[name]  # Of a process that was faster.
    mine = list(objects)[number::parts]
    found = _digests(mirror, folder, {name: objects[name] for name in mine})
    part = {_inside(name, there): [objects[name].size, found[name]] for name in mine}
    mirror.store.write(f"{there}/{_PART}{number}", json.dumps(part).encode())
    wait_for_all(f"reading back {place(folder)}")
    if is_main_process():
        files: dict[str, Any] = {}
        for index in range(parts):
            files |= json.loads(mirror.store.read(f"{there}/{_PART}{index}") or b"{}")
        if missing := {_inside(name, there) for name in objects} - set(files):
            raise UserError(f"{place(folder)}/{min(missing)}: is not there as it was written")
        mirror.check()
        mirror.push()
        mirror.store.remove([f"{there}/{_PART}{index}" for index in range(parts)])
        mirror.store.write(f"{there}/{MANIFEST}", manifest_text(facts, files).encode())
    wait_for_all(f"vouching for {place(folder)}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_bytes(mirror.store.read(f"{there}/{MANIFEST}") or b"")


def check_for_all(folder: Path, verify: Verify, advance: Advance = lambda _: None) -> Manifest:
    """Checks a folder against its manifest: processes call it together, each reads its share.

    Raises:
      DamagedError: as `manifest.check_folder` does.
    """
    if mirror := own_mirror(folder):
        return _check(mirror, folder, verify, advance)
    bring_for_all(folder)
    return check_folder(folder, verify, process_share(), advance)


def whole_for_all(folder: Path, verify: Verify) -> Manifest | None:
    """The manifest of a folder that is as it says, in all processes; None if it is not."""
    found = None
    with contextlib.suppress(DamagedError):
        found = check_for_all(folder, verify)
    return found if all_true(found is not None) else None


def _check(mirror: Mirror, folder: Path, verify: Verify, advance: Advance) -> Manifest:
    """Checks the objects of a folder, without bringing it here."""
    there, manifest = mirror.name(folder), read_manifest(folder)
    objects = mirror.store.objects(there)

    def size_of(name: str) -> int:
        if f"{there}/{name}" not in objects:
            raise FileNotFoundError(name)
        return objects[f"{there}/{name}"].size

    def digests(files: list[tuple[str, int]]) -> list[str]:
        names = {f"{there}/{name}": objects[f"{there}/{name}"] for name, _ in files}
        return list(_digests(mirror, folder, names, advance).values())

    compare(manifest, size_of, digests if verify == "full" else None, process_share())
    return manifest


def _inside(name: str, there: str) -> str:
    return name.removeprefix(f"{there}/")


def _digests(
    mirror: Mirror, folder: Path, objects: Mapping[str, Object], advance: Advance = lambda _: None
) -> dict[str, str]:
    """The digest of each object, which is downloaded for that long."""
    with _scratch(folder) as top:
        mirror.store.download({name: top / name for name in objects}, objects)
        sizes = [(name, found.size) for name, found in objects.items()]
        return dict(zip(objects, file_digests(top, sizes, advance), strict=True))


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder beside a checkpoint's, under a name that the next run removes."""
    top = folder.with_name(f"{folder.name}.saving")
    try:
        yield top
    finally:
        shutil.rmtree(top, ignore_errors=True)
