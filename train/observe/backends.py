"""TensorBoard, Weights & Biases, trackio and MLflow as trackers; each package is imported here."""

import importlib.util
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..config.yaml import flatten
from ..errors import UserError
from .trackers import Opening, Sample, TrackedRun

# The package that each tracker needs.
PACKAGES = {
    "tensorboard": "tensorboardX",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
}


def find_openings(names: Sequence[str]) -> dict[str, Opening]:
    """What opens each of these trackers.

    Raises:
      UserError: if the package of one is not installed.
    """
    for name in names:
        package = PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"track: {name} needs the package {package}; pip install {package}, or all "
                'trackers with pip install "gmt-jax[track]"'
            )
    openings: dict[str, Opening] = {
        "tensorboard": TensorBoard,
        "wandb": Wandb,
        "trackio": Trackio,
        "mlflow": Mlflow,
    }
    return {name: openings[name] for name in names}


class TensorBoard:
    """Event files in RUN/tensorboard: curves, histograms, the config and samples as text."""

    purges = True

    def __init__(self, run: TrackedRun) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._event, self._summary = Event, summary
        folder = run.folder / "tensorboard"
        folder.mkdir(exist_ok=True)
        # Not the package's SummaryWriter, whose thread dies of a full disk and blocks its callers.
        # Named by the time in full too: files are read in the order of their names.
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        first = run.done + 1 if run.done else 0
        if run.resumed:  # TensorBoard drops what an earlier process wrote from this step on.
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=first, session_log=start, wall_time=time.time()))
        else:
            settings = {**dict(_flat(run.config)), **run.facts}
            self._write(0, summary.text("config", _table([settings], turn=True)))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds a point to the curve of each figure."""
        for name, value in figures.items():
            self._write(step, self._summary.scalar(name, value), flush=False)
        self._flush()

    def log_values(self, step: int, name: str, values: Sequence[float]) -> None:
        """Adds a histogram."""
        array = np.asarray(values, np.float64)
        counts, edges = _histogram(array)
        if len(array):
            self._write(
                step,
                self._summary.histogram_raw(
                    name,
                    array.min(),
                    array.max(),
                    len(array),
                    array.sum(),
                    np.square(array).sum(),
                    edges[1:].tolist(),
                    counts.tolist(),
                ),
            )

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Adds a table of completions, as text."""
        self._write(step, self._summary.text("samples", _table(samples)))

    def _write(self, step: int, summary: Any, *, flush: bool = True) -> None:
        self._writer.write_event(self._event(step=step, summary=summary, wall_time=time.time()))
        if flush:
            self._flush()

    def _flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; offline if WANDB_MODE says so. A resumed run has the same id."""

    purges = False

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE", "online")
        if mode not in ("offline", "disabled", "dryrun") and not wandb.api.api_key:
            raise RuntimeError("nobody is logged in: run wandb login, or set WANDB_MODE=offline")
        self._wandb = wandb
        # Nothing of the machine, the command line, the code or the screen is sent.
        settings = wandb.Settings(
            silent=True,
            console="off",
            save_code=False,
            disable_git=True,
            x_disable_meta=True,
            host="-",
            program="-",
            init_timeout=25,
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", run.project),
            name=run.name,
            id=run.id,
            resume="allow",
            reinit="create_new",
            dir=str(run.folder),
            config={**run.config, "facts": dict(run.facts)},
            settings=settings,
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds a point to the curve of each figure."""
        self._run.log(dict(figures), step=step)

    def log_values(self, step: int, name: str, values: Sequence[float]) -> None:
        """Adds a histogram."""
        histogram = self._wandb.Histogram(np_histogram=_histogram(np.asarray(values)))
        self._run.log({name: histogram}, step=step)

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Adds a table of completions."""
        columns, rows = _columns(samples)
        self._run.log({"samples": self._wandb.Table(columns=columns, data=rows)}, step=step)

    def close(self) -> None:
        """Sends the rest."""
        self._run.finish()


class Trackio:
    """A run of trackio, in its own folder on this machine (TRACKIO_DIR) or a Space."""

    purges = False

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._trackio = trackio
        self._run = trackio.init(
            project=run.project,
            name=f"{run.name}-{run.id}",
            config={**run.config, "facts": dict(run.facts)},
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds a point to the curve of each figure."""
        self._run.log(dict(figures), step=step)

    def log_values(self, step: int, name: str, values: Sequence[float]) -> None:
        """Adds a histogram."""
        histogram = self._trackio.Histogram(np_histogram=_histogram(np.asarray(values)))
        self._run.log({name: histogram}, step=step)

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Adds a table of completions."""
        columns, rows = _columns(samples)
        self._run.log({"samples": self._trackio.Table(columns=columns, data=rows)}, step=step)

    def close(self) -> None:
        """Sends the rest."""
        self._run.finish()


class Mlflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI or in MLflow's own database in the working folder."""

    purges = False

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", run.project)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        # A run's id is the server's: the run is found by ours.
        runs = self._client.search_runs([experiment], f"tags.gmt_train_id = '{run.id}'")
        if runs:
            self._id = runs[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {"gmt_train_id": run.id, **run.facts}
        if "git_revision" in run.facts:
            tags["mlflow.source.git.commit"] = run.facts["git_revision"].split()[0]
        self._id = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        params = [Param(key, str(value)[:6000]) for key, value in _flat(run.config)]
        for begin in range(0, len(params), 100):  # The most that a call may have.
            self._client.log_batch(self._id, params=params[begin : begin + 100])

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds a point to the curve of each figure."""
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def log_values(self, step: int, name: str, values: Sequence[float]) -> None:
        """Nothing: MLflow has no histograms."""

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Adds completions to the run's table of them."""
        columns, rows = _columns([{"step": step, **sample} for sample in samples])
        table = {name: [row[at] for row in rows] for at, name in enumerate(columns)}
        self._client.log_table(self._id, table, "samples.json")

    def close(self) -> None:
        """Ends the run."""
        self._client.set_terminated(self._id)


def _flat(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Dotted keys with values, in characters that all trackers take."""
    return [
        (re.sub(r"[^\w./ -]", "_", key), value)
        for key, value in flatten(dict(config))
        if not isinstance(value, dict)
    ]


def _histogram(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts and edges of 30 bins of the finite values."""
    return np.histogram(values[np.isfinite(values)], bins=30)


def _columns(samples: Sequence[Sample]) -> tuple[list[str], list[list[Any]]]:
    """Samples as the names of columns and rows."""
    columns = list(dict.fromkeys(name for sample in samples for name in sample))
    return columns, [[sample.get(name, "") for name in columns] for sample in samples]


def _table(samples: Sequence[Sample], *, turn: bool = False) -> str:
    """Samples as a table in Markdown.

    Args:
      turn: whether a sample's names are the first column, and its values the second.
    """
    columns, rows = _columns(samples)
    if turn:
        columns, rows = ["", ""], [list(pair) for pair in zip(columns, rows[0], strict=True)]

    def line(cells: Sequence[Any]) -> str:
        texts = (str(cell).replace("|", "\\|").replace("\n", "<br>") for cell in cells)
        return f"| {' | '.join(texts)} |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])
