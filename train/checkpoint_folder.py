"""The folder of a run's checkpoints: names, verification and pruning, whatever a step holds.

A folder with a number for its name has a manifest: it is a whole checkpoint, or one that was
damaged later.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from . import manifest
from .buckets import apart
from .buckets.mirror import is_writer, mirror_of, shown
from .distributed.processes import all_true, barrier, is_main_process, process_share
from .distributed.rendezvous import vouching
from .errors import UserError, warn
from .files import flush_entries, flush_folder
from .manifest import Advance, DamagedError, Verify

# Names that a save has before it is complete, and a checkpoint that is being removed; orbax adds
# to them while it writes. A run that was killed leaves them, and the next removes them.
_SAVING, _REMOVING, _DAMAGED = ".saving", ".removing", ".damaged"
_LEFT_BEHIND = re.compile(rf"\d+({_SAVING}|{_REMOVING}|\.orbax-checkpoint-tmp).*")

# Bytes of a checkpoint, from which on a terminal shows how far its verification is.
_SHOWN = 1 << 30


class CheckpointFolder:
    """One folder a step, complete or under a temporary name.

    Args:
      path: of the folder.
      verify: whether checkpoints are digested, or only their sizes compared.
    """

    def __init__(self, path: Path, verify: Verify = "full") -> None:
        self.path, self._verify = path.absolute(), verify

    def step(self, step: int) -> Path:
        """The folder of a checkpoint."""
        return self.path / str(step)

    def saving(self, step: int) -> Path:
        """The folder in which a checkpoint is written, if all processes share it."""
        return self.path / f"{step}{_SAVING}"

    def target(self, step: int) -> str:
        """Where orbax writes a checkpoint: in a bucket at once, if processes share no folder."""
        own = apart.own_mirror(self.path) is not None
        return apart.place(self.step(step) if own else self.saving(step))

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, in ascending order, without looking into them."""
        return sorted(int(path.name) for path in self._entries(re.compile(r"\d+")))

    def clear(self) -> None:
        """Makes the folder, and removes what a killed run left in it.

        Raises:
          UserError: if it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{self.path}: cannot be made ({reason}); mend the disk") from None
        for left in self._entries(_LEFT_BEHIND):
            shutil.rmtree(left, ignore_errors=True)
        if mirror := mirror_of(self.path):
            mirror.clear(self.path)

    def commit(self, step: int, facts: Mapping[str, Any]) -> None:
        """Vouches for a checkpoint that is written, and gives it its name.

        Of a run at an address, the records are uploaded before it: it counts with its manifest.
        """
        if own := apart.own_mirror(self.path):
            apart.commit(own, self.step(step), {**facts, "step": step})
            return
        with vouching:
            self._commit(step, facts)

    def _commit(self, step: int, facts: Mapping[str, Any]) -> None:
        saving, mirror = self.saving(step), mirror_of(self.path)
        manifest.write_manifest(saving, {**facts, "step": step})
        flush_folder(saving)
        if mirror:
            mirror.push()
            mirror.put(saving, f"{self.path.name}/{step}")
        saving.rename(self.step(step))
        flush_entries(self.path)
        if mirror:
            mirror.thin(self.step(step))

    def discard(self, step: int) -> None:
        """Removes what there is of a checkpoint that could not be written."""
        if own := apart.own_mirror(self.path):
            own.remove(self.step(step))
        for left in self.path.glob(f"{step}{_SAVING}*"):
            shutil.rmtree(left, ignore_errors=True)

    def prune(self, keep: int, keep_every: int | None, best: int | None = None) -> None:
        """Removes all but the newest, the best, those kept for good, and newer damaged ones."""
        steps = self.steps
        for step in steps[:-keep]:
            if step != best and not (keep_every and step % keep_every == 0):
                self._remove(self.step(step))
        for damaged in self._entries(re.compile(rf"\d+{_DAMAGED}")):
            if int(damaged.name.partition(".")[0]) <= steps[-1]:
                self._remove(damaged)

    def _remove(self, path: Path) -> None:
        removing = path.with_name(path.name + _REMOVING)
        with contextlib.suppress(OSError, UserError):  # It is tried again at the next save.
            if mirror := mirror_of(path):
                mirror.remove(path)
            path.rename(removing)
            shutil.rmtree(removing)

    def fault(self, step: int) -> str | None:
        """What is wrong with a checkpoint, or None; each process reads its share of the files."""
        fault = None
        try:
            with _progress(self.step(step), self._verify) as advance:
                found = apart.check_for_all(self.step(step), self._verify, advance)
            if found.facts.get("step") != step:
                fault = f"is a copy of step {found.facts.get('step')}"
        except DamagedError as error:
            fault = str(error)
        return None if all_true(fault is None) else fault or "is damaged, as another process found"

    def is_gone(self, step: int) -> bool:
        """Whether a run that is live has removed a checkpoint, which was there before."""
        folder = self.step(step)
        if mirror := mirror_of(folder):
            return mirror.store.read(f"{mirror.name(folder)}/{manifest.NAME}") is None
        return not folder.exists()

    def set_aside(self, damaged: Mapping[int, str], used: int, *, rename: bool) -> None:
        """Reports damaged checkpoints, and renames them so that their steps can be saved again."""
        for step, fault in damaged.items():
            path, action = self.step(step), "is left out"
            if rename:
                aside = path.with_name(path.name + _DAMAGED)
                action = f"is set aside as {aside.name}"
                if is_writer(path):
                    shutil.rmtree(aside, ignore_errors=True)
                    path.rename(aside)
                    if mirror := mirror_of(path):
                        mirror.rename(path, aside)
            if is_main_process():
                warn(f"{shown(path)} is damaged ({fault}) and {action}; step {used} is used")
            if rename:
                barrier(f"setting {shown(path)} aside")

    def _entries(self, pattern: re.Pattern[str]) -> list[Path]:
        if not self.path.is_dir():
            return []
        return [path for path in self.path.iterdir() if pattern.fullmatch(path.name)]


@contextlib.contextmanager
def _progress(folder: Path, verify: Verify) -> Iterator[Advance]:
    """Shows on a terminal how far the verification of this process's share of a folder is."""
    number, parts = process_share()
    console, total = Console(stderr=True), 0
    if verify == "full" and number == 0 and console.is_terminal:
        with contextlib.suppress(DamagedError):
            total = manifest.read_manifest(folder).num_bytes // parts
    columns = *Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console, transient=True, disable=total < _SHOWN) as progress:
        task = progress.add_task(f"verifying step {folder.name}", total=total)
        yield lambda count: progress.advance(task, count)
