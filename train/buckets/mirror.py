"""A run at an address: a folder here that mirrors it, with what is large brought when needed.

The bucket is what counts. The folder has all small files of the run, which are put whole, and of
every folder that has a manifest (a checkpoint, the export) at first the manifest alone. What has no
manifest in the bucket is no checkpoint: it is uploaded first, its manifest last.
"""

import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from ..distributed.processes import is_main_process, wait_for_all
from ..errors import UserError
from ..lease import NAME as LOCK
from ..manifest import NAME as MANIFEST
from ..manifest import DamagedError, read_manifest
from .lease import NAME as LEASE
from .store import Object, Store

_OWN = {LEASE, LOCK}  # Names that are not copied.
_LARGE = ("checkpoints", "profile")  # Folders of which nothing is brought that is not asked for.

_State = tuple[int, int]  # The size and the time of a file.


class Mirror:
    """The folder here of a run at an address.

    Args:
      folder: here.
      address: of the run.

    Attributes:
      token: of the lease, if this process has it.
      check: is called before a folder is uploaded; raises UserError if another run writes there.
      apart: whether the processes of the run share no folder. Each has a mirror then, in which it
        writes what process 0 does; process 0 alone changes the bucket, but for `apart.commit`.
    """

    token: str | None = None
    apart: bool = False

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address.rstrip("/")
        self.store = Store(self.address)
        self._same: dict[str, _State] = {}  # Files that are in the bucket as they are here.
        self._lock = threading.Lock()
        self.check: Callable[[], object] = lambda: None

    def pull(self) -> None:
        """Fills the folder, which is empty or holds what this process put there."""
        objects = self.store.objects()
        wholes = tuple(f"{name.rpartition('/')[0]}/" for name in objects if _is_manifest(name))
        for name in objects:
            # Of a save that was cut off in the bucket, no folder that would count as a checkpoint.
            if name.startswith(wholes) or not name.startswith("checkpoints/"):
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        later = (*wholes, *(f"{name}/" for name in _LARGE))
        wanted = {name for name in objects if name not in _OWN and not name.startswith(later)}
        self._download(sorted(wanted | {f"{whole}{MANIFEST}" for whole in wholes}), objects)

    def hurry(self) -> None:
        """From now on, nothing is tried again for long."""
        self.store.patience = 5.0

    def push(self) -> None:
        """Uploads what is new or has changed here: small files, and folders with a manifest."""
        with self._lock:
            files = [path for path in self.folder.rglob("*") if path.is_file()]
            names = {path.relative_to(self.folder).as_posix(): path for path in files}
            wholes = {name.rpartition("/")[0] for name in names if name.endswith(f"/{MANIFEST}")}
            small = {
                name: path
                for name, path in names.items()
                if not name.startswith("checkpoints/")
                and not any(name.startswith(f"{whole}/") for whole in wholes)
                and path.name not in _OWN
                and not _is_temporary(name)
            }
            self._upload(small)
            for whole in sorted(wholes):
                manifest = self.folder / whole / MANIFEST
                if not whole.startswith("checkpoints/") and self._is_new(manifest):
                    self.put(self.folder / whole)

    def put(self, folder: Path, name: str | None = None) -> None:
        """Uploads a folder with a manifest, in place of what is there, the manifest last.

        Args:
          name: the name that it has in the bucket, if it has another one here.
        """
        self.check()
        there = name or self.name(folder)
        before = self.store.objects(there)
        self.store.remove([f"{there}/{MANIFEST}"] if f"{there}/{MANIFEST}" in before else [])
        here = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        self.store.upload({f"{there}/{n}": p for n, p in here.items() if n != MANIFEST})
        after = self.store.objects(there)
        for own, path in here.items():
            found = after.get(f"{there}/{own}")
            if own != MANIFEST and (found is None or found.size != path.stat().st_size):
                raise UserError(f"{self.address}/{there}/{own}: is not there as it was written")
        self._upload({f"{there}/{MANIFEST}": folder / MANIFEST})
        self.store.remove([name for name in before if name.removeprefix(f"{there}/") not in here])

    def bring(self, folder: Path) -> None:
        """Downloads the files of a folder that are in the bucket and not here."""
        there = self.name(folder)
        objects = self.store.objects(there)
        self._download([n for n in objects if not (self.folder / n).exists()], objects)

    def thin(self, folder: Path) -> None:
        """Removes the files of a folder here, but for the manifest; they are in the bucket."""
        for path in folder.rglob("*"):
            if path.is_file() and path != folder / MANIFEST:
                path.unlink(missing_ok=True)

    def remove(self, folder: Path) -> None:
        """Removes a folder from the bucket, its manifest first."""
        if not is_main_process():
            return
        there = self.name(folder)
        names = list(self.store.objects(there))
        self.store.remove([name for name in names if name == f"{there}/{MANIFEST}"])
        self.store.remove(names)

    def rename(self, folder: Path, new: Path) -> None:
        """Gives a folder another name in the bucket, which it has in part for a while."""
        if not is_main_process():
            return
        there, wanted = self.name(folder), self.name(new)
        names = list(self.store.objects(there))
        self.store.copy({name: wanted + name.removeprefix(there) for name in names})
        self.remove(folder)

    def clear(self, folder: Path) -> None:
        """Removes from the bucket what a killed run left below a folder: all without a manifest."""
        if not is_main_process():
            return
        there = self.name(folder)
        objects = self.store.objects(there)
        tops = {name: PurePosixPath(name).relative_to(there).parts[0] for name in objects}
        whole = {top for name, top in tops.items() if name == f"{there}/{top}/{MANIFEST}"}
        left = {top for top in tops.values() if top.isdecimal()} - whole
        self.store.remove([name for name, top in tops.items() if top in left])

    @property
    def names(self) -> tuple[str, str]:
        """The folder and the address."""
        return str(self.folder), self.address

    def name(self, path: Path) -> str:
        """What a path in the folder is called in the bucket."""
        return path.absolute().relative_to(self.folder).as_posix()

    def _download(self, names: list[str], objects: dict[str, Object]) -> None:
        self.store.download({name: self.folder / name for name in names}, objects)
        self._same |= {name: _state(self.folder / name) for name in names}

    def _upload(self, files: dict[str, Path]) -> None:
        states = {name: _state(path) for name, path in files.items()}
        changed = [name for name in files if self._same.get(name) != states[name]]
        self.store.upload({name: files[name] for name in changed})
        self._same |= {name: states[name] for name in changed}

    def _is_new(self, path: Path) -> bool:
        return self._same.get(self.name(path)) != _state(path)


_mirrors: dict[Path, Mirror] = {}  # Those of this process, by their folder.


def keep(mirror: Mirror) -> None:
    """Lets `mirror_of` find a mirror."""
    _mirrors[mirror.folder] = mirror


def forget(mirror: Mirror) -> None:
    """Undoes `keep`."""
    _mirrors.pop(mirror.folder, None)


def mirror_of(path: Path) -> Mirror | None:
    """The mirror that a path is in, if it is the folder of a run at an address or in one."""
    path = path.absolute()
    return next((_mirrors[top] for top in (path, *path.parents) if top in _mirrors), None)


def is_writer(folder: Path) -> bool:
    """Whether this process writes in a run's folder: process 0 does it for all that share it."""
    mirror = mirror_of(folder)
    return is_main_process() or (mirror is not None and mirror.apart)


def push(folder: Path) -> None:
    """Uploads what is new in the folder of a run at an address; process 0 does it for all.

    Raises:
      UserError: if it cannot be uploaded.
    """
    mirror = mirror_of(folder)
    if mirror is not None and is_main_process():
        mirror.push()


def shown(path: Path) -> str:
    """The address of a path in the folder of a run at an address; any other path as it is."""
    mirror = mirror_of(path)
    return str(path) if mirror is None else f"{path.absolute()}".replace(*mirror.names)


def bring(folder: Path, *, whole: bool = False) -> None:
    """Downloads what is missing of a folder with a manifest, if it is in that of a mirror.

    Args:
      whole: also what the manifest does not name.

    Raises:
      UserError: if it cannot be downloaded.
    """
    mirror = mirror_of(folder)
    if mirror is None or not folder.is_dir():
        return
    try:
        names = list(read_manifest(folder).files)
    except DamagedError:
        whole, names = True, []
    if whole or not all((folder / name).exists() for name in names):
        mirror.bring(folder)


def bring_for_all(folder: Path) -> None:
    """`bring` by process 0, for all processes, which call it together."""
    if mirror_of(folder) is not None:
        if is_main_process():
            bring(folder)
        wait_for_all(f"bringing {shown(folder)}")


def _is_manifest(name: str) -> bool:
    parts = name.split("/")
    return parts[-1] == MANIFEST and len(parts) == (3 if parts[0] == "checkpoints" else 2)


def _is_temporary(name: str) -> bool:
    """Whether a name is one that `files` gives while it writes."""
    return any(part.startswith(".") and part.endswith((".new", ".old")) for part in name.split("/"))


def _state(path: Path) -> _State:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
