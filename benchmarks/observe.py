"""Times what a run does to be seen: records, figures by tensor, charts and trackers.

python benchmarks/observe.py tensorboard wandb trackio mlflow

Trackers write to a temporary folder. The main thread's time is what a run waits for.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from gmt_train.observe.backends import PACKAGES, find_openings
from gmt_train.observe.progress import Display
from gmt_train.observe.trackers import TrackedRun, Trackers
from gmt_train.run import Run
from rich.console import Console

LAYERS = 30
MATRICES = [
    *(f"attention/{name}" for name in ("q", "k", "v", "out")),
    *(f"mlp/{name}" for name in ("gate", "up", "down")),
    "attention_norm",
    "mlp_norm",
]
FIGURES = [
    *("grad_norm", "weight_norm", "update_norm"),
    *(
        f"mask/{name}"
        for name in ("masked", "norm_kept", "nonzero_dropped", "overlap", "ever_kept")
    ),
]


def _record(step: int) -> dict[str, object]:
    layers = {f"layers/{name}/weight": [0.01 * n for n in range(LAYERS)] for name in MATRICES}
    tensors = {name: {**layers, "embed": 1.0, "norm/weight": 1.0} for name in FIGURES}
    names = ("grad_norm", "masked_fraction", "tokens_per_s", "learning_rate", "mask/overlap")
    return {"step": step, "loss": 1 / step, **dict.fromkeys(names, 0.5), "tensors": tensors}


def _time(names: list[str], num_records: int) -> tuple[float, float]:
    """Milliseconds of the CPU for a record: of the main thread, and of all threads together."""
    temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with temporary as top, open(os.devnull, "w") as out:
        os.environ |= {
            "WANDB_MODE": "offline",
            "TRACKIO_DIR": f"{top}/trackio",
            "MLFLOW_TRACKING_URI": f"sqlite:///{top}/mlflow.db",
        }
        folder = Path(top)
        run = Run(folder)
        display = Display(10 * num_records, Console(file=out, force_terminal=True))
        trackers = Trackers(
            find_openings(names),
            lambda done, run_id: TrackedRun(folder, "project", "run", run_id, {}, {}, done),
        )
        trackers.start(0, folder / "trackers.json")
        display.start(0)
        whole, main = time.process_time(), time.thread_time()
        for number in range(1, num_records + 1):
            record = _record(10 * number)
            for show in (run.log, trackers.log, display.show):
                show(record)
        main = time.thread_time() - main
        display.stop()
        trackers.stop()
        whole = time.process_time() - whole
    return 1e3 * main / num_records, 1e3 * whole / num_records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trackers", nargs="*", choices=PACKAGES, default=[])
    parser.add_argument("--records", type=int, default=100)
    args = parser.parse_args()
    print(f"a record with {len(FIGURES)} figures of {LAYERS * len(MATRICES) + 2} tensors\n")
    print("| trackers | main thread, ms | all threads, ms |\n|---|---|---|")
    for names in [[], *([name] for name in args.trackers), args.trackers]:
        title = ", ".join(names) or "none"
        alone, together = _time(names, args.records)
        print(f"| {title} | {alone:.1f} | {together:.1f} |", flush=True)


if __name__ == "__main__":
    main()
