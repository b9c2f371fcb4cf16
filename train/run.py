"""The folder of a run: its files, and whether a run may write to it."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import lease
from .best import Best
from .buckets.apart import whole_for_all
from .buckets.mirror import is_writer, shown
from .config import RESUMABLE_KEYS, Config, differing_keys, dump_config, load_config
from .distributed.processes import barrier, same_number
from .errors import UserError
from .files import append, atomic_file


class Run:
    """The folder of one run: its config, its records by line, checkpoints/ and export/."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config_file = folder / "config.yaml"
        top = folder.absolute()  # Where records go though a script changes its working folder.
        self.metrics_file = top / "metrics.jsonl"
        self.samples_file = top / "samples.jsonl"
        self.tensors_file = top / "tensors.jsonl"
        self.data_file = folder / "data.json"  # The first start, and what was found then.
        self._clock: datetime | None = None
        self._existed = self.config_file.is_file()
        self.stopped = False  # By a signal, before its last update.
        self.checkpoints = folder / "checkpoints"
        self.export, self.adapter = folder / "export", folder / "adapter"

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Returns the run in an existing folder.

        Raises:
          UserError: if there is no run in the folder.
        """
        run = cls(folder)
        if not run.config_file.is_file():
            raise UserError(f"{folder} is not a run: it has no config.yaml")
        return run

    def config(self) -> Config:
        """Returns the resolved config that the run was started with."""
        return load_config(self.config_file)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def records(self) -> list[dict[str, Any]]:
        """What was logged: losses, speed and other figures, each with its `step`."""
        return list(read_records(self.metrics_file))

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The completions: `step`, `prompt`, `completion`, and a pair's `chosen` and `rejected`."""
        return list(read_records(self.samples_file))

    @property
    def tensors(self) -> list[dict[str, Any]]:
        """The figures of every tensor: `step`, and `tensors` by figure and path."""
        return list(read_records(self.tensors_file))

    def check(self, config: Config, resume: bool) -> None:
        """Checks that this run may write to the folder; writes nothing.

        Raises:
          UserError: if the folder holds something else, a run and `resume` is false, or a run
            with other settings.
        """
        self._existed = self.config_file.is_file()
        if self._existed:
            if not resume:
                raise UserError(
                    f"{self.folder} already holds a run; continue it with --resume, "
                    "or choose another folder with run=FOLDER"
                )
            different = differing_keys(self.config(), config, RESUMABLE_KEYS)
            if different:
                raise UserError(
                    f"{self.folder} was started with another {', '.join(different)}; "
                    "resume it with the same settings, or choose another folder with run=FOLDER"
                )
        elif is_foreign(self.folder):
            raise UserError(
                f"{self.folder} exists and is not a run; choose another folder with run=FOLDER"
            )

    def held(self) -> AbstractContextManager[None]:
        """Holds the lease of the folder if that exists; process 0 does it for all that share it.

        Raises:
          UserError: if another process writes there.
        """
        return lease.held(self.folder) if is_writer(self.folder) else contextlib.nullcontext()

    def _take(self, *, new: bool) -> None:
        """Takes the lease of the folder, which is made.

        Raises:
          UserError: if another process writes there, or has done so since `check`.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror}); set run to another folder"
            ) from None
        lease.take(self.folder)
        if new and self.config_file.exists():
            raise UserError(f"{self.folder}: another run was started there just now")

    def is_finished(self, config: Config) -> bool:
        """Whether there is the last checkpoint, and the export of it if the config asks for one."""
        best = Best.of(config, self.records if self.metrics_file.is_file() else ())
        last = best.last_step if best is not None and best.is_over else config.steps
        if last is None:
            return False
        verify = config.checkpoint.verify
        if whole_for_all(self.checkpoints / str(last), verify) is None:
            return False
        if config.export_dtype is None:
            return True
        step = best.saved_step(self.checkpoints) if best is not None else None
        exported = whole_for_all(self.export, verify)
        wanted = {"step": last if step is None else step, "dtype": config.export_dtype}
        return exported is not None and exported.facts == wanted

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint's manifest notes of its run: the config, the data and the versions."""
        packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
        return {
            "config": self.config().model_dump(mode="json"),
            "data": self._data_facts(),
            "versions": {name: version(name) for name in packages},
        }

    def clock(self) -> datetime:
        """When the run was first started, to the second: all that it reads of the time.

        All processes call it together.
        """
        if self._clock is None:
            epoch = datetime(1970, 1, 1)
            started = self._data_facts().get("started")
            now = datetime.fromisoformat(started) if started else datetime.now()
            seconds = same_number(int((now - epoch).total_seconds()))
            self._clock = epoch + timedelta(seconds=seconds)
        return self._clock

    def _data_facts(self) -> dict[str, Any]:
        if not self.data_file.is_file():
            return {}
        try:
            facts: dict[str, Any] = json.loads(self.data_file.read_text(encoding="utf-8"))
            datetime.fromisoformat(facts["started"])
            _ = facts["contents"].items()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(
                f"{self.data_file}: is damaged; bring it back from a copy, or from the facts that "
                "the manifest.json of a checkpoint has"
            ) from None
        return facts

    def check_contents(
        self, contents: Mapping[str, str], optional: Mapping[str, str] | None = None
    ) -> None:
        """Checks that the run was not started with other contents.

        Args:
          contents: digests, or short contents, by what they are of, such as "training data".
          optional: likewise of what the run may have been started without.

        Raises:
          UserError: naming those that have changed since.
        """
        started_with = self._data_facts().get("contents")
        if started_with is None:
            return
        contents = {n: c for n, c in (optional or {}).items() if n in started_with} | {**contents}
        changed = [name for name in contents if started_with.get(name) != contents[name]]
        if changed:
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise UserError(
                f"{self.folder} was started with other contents: {', '.join(changed[:5])}{more} "
                "changed under the same path; bring them back, or choose another folder with "
                "run=FOLDER"
            )

    def start(
        self,
        config: Config,
        contents: Mapping[str, str] | None = None,
        optional: Mapping[str, str] | None = None,
    ) -> None:
        """Creates the folder, with the resolved config in it.

        Args:
          contents: all that a resumed run has to find as it was; see `check_contents`.
          optional: as for `check_contents`.

        Raises:
          UserError: if it cannot be written, if another process does not see its files, or if
            contents have changed since the run was started.
        """
        self.check_contents(contents or {}, optional)
        contents = {**(contents or {}), **(optional or {})}
        facts = {"started": self.clock().isoformat(), "contents": contents}
        barrier(f"before creating {shown(self.folder)}")  # All processes have checked the folder.
        if is_writer(self.folder):
            self._take(new=not self._existed)
        if is_writer(self.folder) and not self.config_file.exists():
            try:
                with atomic_file(self.config_file) as file:
                    file.write_text(dump_config(config), encoding="utf-8")
            except UserError as error:
                raise UserError(f"{error}; set run to another folder") from None
        if is_writer(self.folder) and not self.data_file.exists():
            with atomic_file(self.data_file) as file:
                file.write_text(json.dumps(facts) + "\n", encoding="utf-8")
        barrier(f"after creating {shown(self.folder)}")
        if not self.config_file.exists():
            raise UserError(
                f"{self.folder} is not the folder that process 0 writes to; "
                "set run to one on storage that all processes share"
            )

    def forget_after(self, step: int) -> None:
        """Drops the records of updates after `step`; a resumed run repeats those updates."""
        if not is_writer(self.folder):
            return
        for file in (self.metrics_file, self.samples_file, self.tensors_file):
            kept = [record for record in read_records(file) if record["step"] <= step]
            if file.exists():
                with atomic_file(file) as new:
                    new.write_text("".join(map(_line, kept)), encoding="utf-8")

    def log(self, record: dict[str, Any]) -> None:
        """Appends a record to metrics.jsonl, and its figures by tensor to tensors.jsonl."""
        if "tensors" in record:
            _append(self.tensors_file, {key: record[key] for key in ("step", "tensors")})
        _append(self.metrics_file, {key: x for key, x in record.items() if key != "tensors"})

    def log_sample(self, record: dict[str, Any]) -> None:
        """Appends a completion to samples.jsonl."""
        _append(self.samples_file, record)


def is_foreign(folder: Path) -> bool:
    """Whether there is something that is no run's, nor what a killed run left before its config."""
    left = re.compile(rf"{re.escape(lease.NAME)}|\.config\.yaml\.[0-9a-f]{{8}}\.new")
    if not folder.is_dir():
        return folder.exists()
    return not all(left.fullmatch(f.name) for f in folder.iterdir())


def _line(record: dict[str, Any]) -> str:
    # ASCII: a line that a crash cut off still decodes, and no character but \n ends a line.
    return json.dumps(record) + "\n"


def _append(file: Path, record: dict[str, Any]) -> None:
    if is_writer(file.parent):
        append(file, _line(record))


def read_records(file: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a JSONL file; skips a last line that a crash cut off.

    Raises:
      UserError: naming the line that is not a record.
    """
    if not file.exists():
        return
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            continue
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{file}:{number}: is not a record; bring the file back from a copy, or move it "
                "elsewhere to go on without the records so far"
            ) from None
        yield record
