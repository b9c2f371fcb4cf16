"""A run's folder: who may write to it, and what lies where in it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .config import Config, differing_keys, dump_config, load_config
from .distributed.processes import barrier, is_main_process
from .errors import UserError
from .files import atomic_file

# Keys in which a continued run may differ from its beginning: none of them changes a weight,
# but for the mesh, over which sums are added in another order.
FREE = frozenset({"run", "mesh", "evaluation", "checkpoint", "log_every", "export_dtype", "cache"})


class Run:
    """The folder of one run: config.yaml, metrics.jsonl, samples.jsonl, checkpoints/, export/."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config_file = folder / "config.yaml"
        self.metrics_file = folder / "metrics.jsonl"
        self.samples_file = folder / "samples.jsonl"
        self.checkpoints = folder / "checkpoints"
        self.export = folder / "export"

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """A run that is there already."""
        run = cls(folder)
        if not run.config_file.is_file():
            raise UserError(f"{folder} is not a run: it has no config.yaml")
        return run

    def config(self) -> Config:
        """The resolved config that the run was started with."""
        return load_config(self.config_file)

    def check(self, config: Config, resume: bool) -> None:
        """Sees that the folder is this run's to write to, without writing.

        Raises:
          UserError: if it holds something else, a run that was not to be resumed, or one that
            was started with other settings.
        """
        if self.config_file.is_file():
            if not resume:
                raise UserError(
                    f"{self.folder} already holds a run; continue it with --resume, "
                    "or choose another folder with run=FOLDER"
                )
            differ = differing_keys(self.config(), config, FREE)
            if differ:
                raise UserError(
                    f"{self.folder} was started with another {', '.join(differ)}; "
                    "take the same settings to resume it, or choose another run=FOLDER"
                )
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UserError(
                f"{self.folder} exists and is not a run; choose another folder with run=FOLDER"
            )

    def is_finished(self, config: Config) -> bool:
        """Whether the last checkpoint and the export that the config asks for are there."""
        whole = config.export_dtype is None or self.export.is_dir()
        return (
            config.steps is not None and whole and (self.checkpoints / str(config.steps)).is_dir()
        )

    def start(self, config: Config) -> None:
        """Makes the folder and saves the resolved config in it.

        Raises:
          UserError: where it cannot be written, or another process does not see what is in it.
        """
        barrier(f"{self.folder}: to be made when all have looked at it")
        if is_main_process() and not self.config_file.exists():
            try:
                with atomic_file(self.config_file) as file:
                    file.write_text(dump_config(config), encoding="utf-8")
            except UserError as error:
                raise UserError(f"{error}; set run to another folder") from None
        barrier(f"{self.folder}: to be seen by all")
        if not self.config_file.exists():
            raise UserError(
                f"{self.folder} is not the folder that process 0 writes to; "
                "set run to one on storage that all processes share"
            )

    def forget_after(self, step: int) -> None:
        """Drops records of updates past a restored step: they are about to be done again."""
        if not is_main_process():
            return
        for file in (self.metrics_file, self.samples_file):
            kept = [record for record in read_records(file) if record["step"] <= step]
            if file.exists():
                with atomic_file(file) as new:
                    new.write_text("".join(map(_line, kept)), encoding="utf-8")

    def log(self, record: dict[str, Any]) -> None:
        """Appends a record to metrics.jsonl."""
        _append(self.metrics_file, record)

    def log_sample(self, record: dict[str, Any]) -> None:
        """Appends a completion to samples.jsonl."""
        _append(self.samples_file, record)


def _line(record: dict[str, Any]) -> str:
    # In ASCII a line that a crash cut off still decodes, and no other character ends a line.
    return json.dumps(record) + "\n"


def _append(file: Path, record: dict[str, Any]) -> None:
    if not is_main_process():
        return
    with file.open("a", encoding="utf-8") as out:
        out.write(_line(record))


def read_records(file: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file of ours; a last line cut off by a crash is passed over."""
    if not file.exists():
        return
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    for line in lines:
        if line.endswith("\n"):
            yield json.loads(line)
