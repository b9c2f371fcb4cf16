"""What it costs to see everything of a run: ten updates with it, beside ten without.

    python benchmarks/watching.py --model models/SmolLM2-135M-Instruct

Both train a real model under `gmt`. One has its mask's report, the norms of every tensor, a record
in the run's folder, the terminal's view and the trackers at every tenth update; the other has none.
Each has a process of its own, and they do ten updates in turn, there and back.
"""

import argparse
import os
import platform
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from gmt_train.measure import Measure
from gmt_train.model import ComputeOptions, load_model_config, stacked_axes
from gmt_train.objective.sft import Sft
from gmt_train.observe.backends import PACKAGES, find_openings
from gmt_train.observe.progress import Display
from gmt_train.observe.trackers import TrackedRun, Trackers
from gmt_train.run import Run
from gmt_train.step import jit_train_step
from rich.console import Console
from step import RATE, Step, on_device, timed
from tokens import rows_of

from gmt_jax import gmt

UPDATES = 10


def ten_updates(folder: Path, rows: np.ndarray, trackers: list[str] | None) -> Step:
    """Ten updates; with a list of trackers the last of them is recorded, with all there is."""
    watched = trackers is not None
    optimizer = gmt(optax.adamw(RATE), 0.2, stacked_axes=stacked_axes, report=watched)
    tokens, targets = rows[None, :, :-1], rows[None, :, 1:]
    batch = {"tokens": tokens, "targets": targets, "weights": np.ones(tokens.shape, np.float32)}
    mesh, held, device_batch, shardings = on_device(folder, optimizer, batch)
    objective = Sft(load_model_config(folder), ComputeOptions("float32", "dots", "xla"))
    make = partial(jit_train_step, objective, optimizer, mesh, shardings)
    plain = make(report=False)
    recorded = make(Measure(stacked_axes)) if watched else plain
    shows = _shows(trackers) if watched else []

    def run() -> float:
        with jax.set_mesh(mesh):
            for number in range(UPDATES):
                step = recorded if number == UPDATES - 1 else plain
                held[0], metrics = step(held[0], device_batch)
        figures = jax.device_get(metrics)
        tensors = figures.pop("tensors", None)
        record = {name: float(value) for name, value in figures.items() if np.ndim(value) == 0}
        record["step"] = int(held[0].step)
        if watched:
            record["tensors"] = jax.tree.map(lambda array: array.tolist(), tensors)
        for show in shows:
            show(record)
        jax.block_until_ready(held)
        return float(figures["loss"])

    return run


def _shows(names: list[str]) -> list[Any]:
    """What is called with a record; it writes to a temporary folder, which the system removes."""
    folder = Path(tempfile.mkdtemp())
    os.environ |= {
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": f"{folder}/trackio",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    run = Run(folder)
    console = Console(file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    display = Display(100_000, console)
    trackers = Trackers(
        find_openings(names),
        lambda done, run_id: TrackedRun(folder, "project", "run", run_id, {}, {}, done),
    )
    trackers.start(0, folder / "trackers.json")
    display.start(0)
    return [run.log, trackers.log, display.show]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a folder")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--trackers", nargs="*", choices=PACKAGES, default=["tensorboard"])
    chosen = parser.parse_args()
    print(
        f"jax {jax.__version__}, {os.cpu_count()} cores, {platform.machine()}, "
        f"{chosen.batch} x {chosen.length} tokens, trackers: {', '.join(chosen.trackers)}"
    )
    tokens = rows_of(chosen.model, chosen.batch, chosen.length)
    rows = {
        "nothing seen": (ten_updates, chosen.model, tokens, None),
        "everything at every tenth": (ten_updates, chosen.model, tokens, chosen.trackers),
    }
    seconds = timed(rows, chosen.rounds)
    first = seconds["nothing seen"]
    print("\n| ten updates | s | of nothing seen |\n|---|---|---|")
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, first, strict=True))
        print(f"| {name} | {statistics.median(times):.2f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
