"""What a checkpoint costs: the time for which training stands still, and a restore's.

    python benchmarks/checkpoint.py                                       # a state of 3 GB
    python benchmarks/checkpoint.py --model models/SmolLM2-135M-Instruct  # weights and two moments

A state of random float32 numbers, as they do not compress, is saved and restored in turn. `save`
returns when its copy is on the host, and the rest happens beside the training; the file is whole
when its manifest is. A restore digests every file first (verify: full), or compares sizes alone.
Files are in the page cache: what the disk itself costs comes on top of a restore.
"""

import argparse
import asyncio
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gmt_train.checkpoint import Checkpoints
from gmt_train.manifest import check_folder
from gmt_train.model import abstract_params, load_model_config
from gmt_train.step import TrainState


class NoLoader:
    """A loader without a position."""

    async def save(self, directory: Any) -> Awaitable[None]:
        async def write() -> None:
            await directory.await_creation()

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        return asyncio.sleep(0)


def state_of(shapes: dict[str, Any]) -> TrainState:
    """Weights and two moments of these shapes."""
    keys = iter(jax.random.split(jax.random.key(0), 3 * len(jax.tree.leaves(shapes))))
    draw = lambda leaf: jax.random.normal(next(keys), leaf.shape)  # noqa: E731
    params, mu, nu = (jax.tree.map(draw, shapes) for _ in range(3))
    return TrainState(jnp.int32(1), params, {"mu": mu, "nu": nu})


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


def round_trip(state: TrainState, folder: Path) -> dict[str, float]:
    """Saves the state and restores it, and the seconds of each part."""
    seconds = {}
    with Checkpoints(folder, keep=1) as saves:
        seconds["save: training waits"], _ = timed(lambda: saves.save(state, NoLoader()))
        seconds["save: until it is whole"], _ = timed(saves.wait)
        seconds["save: until it is whole"] += seconds["save: training waits"]
    for verify in ("size", "full"):
        with Checkpoints(folder, keep=1, verify=verify) as saves:
            name = f"restore, verify: {verify}"
            seconds[name], restored = timed(lambda: saves.restore(state, NoLoader()))
        del restored
    seconds["the digests alone"], _ = timed(lambda: check_folder(folder / "1"))
    shutil.rmtree(folder)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder: the state of its training")
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument(
        "--folder", type=Path, help="on the disk to time (default: a temporary one)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    side = round((options.gigabytes * 1e9 / 12 / 8) ** 0.5)
    shapes: Any = {f"w{n}": jax.ShapeDtypeStruct((side, side), np.float32) for n in range(8)}
    if options.model:
        shapes = abstract_params(load_model_config(options.model))
    state = state_of(shapes)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {os.cpu_count()} cores, "
        f"{platform.machine()}, {platform.system()}: {size / 1e9:.2f} GB"
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as top:
        rounds = [round_trip(state, Path(top) / "checkpoints") for _ in range(options.rounds)]
    print("\n| | s | GB/s |\n|---|---|---|")
    for name in rounds[0]:
        median = statistics.median(seconds[name] for seconds in rounds)
        print(f"| {name} | {median:.2f} | {size / 1e9 / median:.2f} |")


if __name__ == "__main__":
    main()
