"""Manifests: the size and digest of every file of a folder, written when all of them are complete.

A checkpoint, an export or a cached store counts only where its manifest vouches for it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

NAME = "manifest.json"
Verify = Literal["full", "size"]
Advance = Callable[[int], None]  # Called with the number of bytes that were just read.

_FORMAT = 1
_PIECE = 1 << 25  # Bytes of a file that are digested at once, on any core.
_CHUNK = 1 << 20


class DamagedError(Exception):
    """A folder is not what its manifest says, or has no manifest that can be read."""


class Manifest(NamedTuple):
    """What a manifest says.

    Attributes:
      facts: what the writer noted, such as the step.
      files: the size and digest of each file, by its path within the folder.
    """

    facts: dict[str, Any]
    files: dict[str, tuple[int, str]]

    @property
    def num_bytes(self) -> int:
        """The size of all files together."""
        return sum(size for size, _ in self.files.values())


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Digests a folder's files and writes its manifest, which has to be the last file."""
    names = sorted(_names(folder))
    sizes = [(folder / name).stat().st_size for name in names]
    digests = file_digests(folder, list(zip(names, sizes, strict=True)))
    files = {n: [s, d] for n, s, d in zip(names, sizes, digests, strict=True)}
    (folder / NAME).write_text(manifest_text(facts, files), encoding="utf-8")


def manifest_text(facts: Mapping[str, Any], files: Mapping[str, Sequence[Any]]) -> str:
    """The content of a manifest; `files` has the size and digest of each."""
    content = {"format": _FORMAT, "facts": dict(facts), "files": dict(files)}
    return json.dumps(content | {"digest": _own_digest(content)}, indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
      DamagedError: if there is none, or it is not as it was written.
    """
    try:
        content = json.loads((folder / NAME).read_bytes())
        if content.pop("digest") != _own_digest(content) or content["format"] != _FORMAT:
            raise DamagedError(f"{NAME} is damaged")
        files = {name: (size, digest) for name, (size, digest) in content["files"].items()}
        return Manifest(content["facts"], files)
    except FileNotFoundError:
        raise DamagedError(f"has no {NAME}") from None
    except OSError as error:
        raise DamagedError(f"{NAME} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedError(f"{NAME} is damaged") from None


def describe_arrays(tree: Any) -> dict[str, str]:
    """The dtype and shape of each array by its path, as a checkpoint's manifest notes them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def compare_arrays(manifest: Manifest, parts: Mapping[str, Any]) -> str:
    """How the arrays of these parts differ from a checkpoint's; empty if they do not."""
    stored, wanted = manifest.facts["arrays"], describe_arrays(parts)
    prefixes = tuple(f"{name}/" for name in parts)
    differences = [
        f"{name} is {stored.get(name, 'absent')} there and {wanted.get(name, 'absent')} here"
        for name in stored | wanted
        if name.startswith(prefixes) and stored.get(name) != wanted.get(name)
    ]
    more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
    return "; ".join(differences[:3]) + more


def check_folder(
    folder: Path,
    verify: Verify = "full",
    share: tuple[int, int] = (0, 1),
    advance: Advance = lambda _: None,
) -> Manifest:
    """Checks a folder's files against its manifest, on all cores, and returns the manifest.

    Args:
      verify: whether contents are read, or sizes alone are compared.
      share: the part of the files that this process reads, and the number of parts.

    Raises:
      DamagedError: naming the files that are missing, of another size or of other content.
    """
    manifest = read_manifest(folder)

    def digests(files: list[tuple[str, int]]) -> list[str]:
        return file_digests(folder, files, advance)

    def size_of(name: str) -> int:
        return (folder / name).stat().st_size

    compare(manifest, size_of, digests if verify == "full" else None, share)
    return manifest


def compare(
    manifest: Manifest,
    size_of: Callable[[str], int],
    digests: Callable[[list[tuple[str, int]]], list[str]] | None,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Compares files with their manifest.

    Args:
      size_of: of a file by its name; raises OSError where there is none.
      digests: of files by their names and sizes; None: sizes alone are compared.
      share: as for `check_folder`.

    Raises:
      DamagedError: as `check_folder` does.
    """
    faults, same_size = [], []
    for name, (size, _) in manifest.files.items():
        try:
            found = size_of(name)
        except OSError as error:
            faults.append(f"{name} is missing" if _is_absent(error) else f"{name}: {error}")
            continue
        if found != size:
            faults.append(f"{name} has {found:,} of {size:,} bytes")
        else:
            same_size.append((name, size))
    if digests is not None and not faults:
        part = same_size[share[0] :: share[1]]
        faults += [
            f"{name} has other content"
            for (name, _), digest in zip(part, digests(part), strict=True)
            if digest != manifest.files[name][1]
        ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise DamagedError(", ".join(faults[:3]) + more)


def keep_others(old: Path, new: Path) -> list[str]:
    """Copies into a new folder what somebody else put into, or changed in, the one it replaces.

    A changed file of a name that the new folder has too is kept beside it, as NAME.kept. Without a
    manifest, files whose names the new folder has count as the program's own.

    Returns:
      The names of the files that were copied.
    """
    try:
        own = read_manifest(old).files
    except DamagedError:
        own = {name: (-1, "") for name in _names(old) if (new / name).exists()}
    kept = []
    for name in sorted(_names(old)):
        if name in own and (own[name][0] < 0 or _is_as_written(old, name, own[name])):
            continue
        copy = new / (f"{name}.kept" if (new / name).exists() else name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(old / name, copy, follow_symlinks=False)
        kept.append(copy.relative_to(new).as_posix())
    return kept


def _is_as_written(folder: Path, name: str, written: tuple[int, str]) -> bool:
    size = (folder / name).stat().st_size
    return size == written[0] and file_digests(folder, [(name, size)]) == [written[1]]


def _is_absent(error: OSError) -> bool:
    return isinstance(error, (FileNotFoundError, NotADirectoryError))


def _names(folder: Path) -> Iterator[str]:
    for root, _, files in os.walk(folder):
        for name in files:
            path = Path(root, name)
            if path != folder / NAME and (path.is_file() or path.is_symlink()):
                yield path.relative_to(folder).as_posix()


def file_digests(
    folder: Path, files: list[tuple[str, int]], advance: Advance = lambda _: None
) -> list[str]:
    """The digest of each file: that of its pieces' digests. An unreadable piece is digested as "".

    hashlib lets other threads run, so that pieces are digested on as many cores as there are.
    """
    pieces = [
        (number, folder / name, start)
        for number, (name, size) in enumerate(files)
        for start in range(0, max(size, 1), _PIECE)
    ]
    wholes = [hashlib.sha256() for _ in files]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for (number, _, _), digest in zip(
            pieces, threads.map(lambda piece: _digest(*piece[1:]), pieces), strict=True
        ):
            wholes[number].update(digest)
            advance(min(_PIECE, files[number][1]))
    return [whole.hexdigest() for whole in wholes]


def _digest(path: Path, start: int) -> bytes:
    digest, left = hashlib.sha256(), _PIECE
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while left and (chunk := file.read(min(_CHUNK, left))):
                digest.update(chunk)
                left -= len(chunk)
    except OSError:
        return b""
    return digest.digest()


def _own_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
