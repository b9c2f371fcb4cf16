"""Times the mask beside AdamW alone, other ways to mask in JAX, and PyTorch's.

    python benchmarks/mask.py                                       # one tensor of each size
    python benchmarks/mask.py --model models/SmolLM2-135M-Instruct  # a model's, and its step
    python benchmarks/mask.py --model models/SmolLM2-135M-Instruct --family  # the other methods
    python benchmarks/mask.py --unstacked 30                        # compiling 272 arrays
    XLA_FLAGS=--xla_force_host_platform_device_count=8 NPROC=32 python benchmarks/mask.py

All rows of a table are timed in turn, round after round. The median of the rounds is printed with
its ratio to that of AdamW's update alone. Every method zeroes a fifth of each tensor, the entries
with the smallest magnitude. With several devices, tensors are sharded over them and methods that
gather are left out. PyTorch is timed where torch is installed. Progress goes to the error stream.
"""

import argparse
import functools
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from family import print_family
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from others import OTHERS, RATIO, Method, Tree, torch, torch_methods
from timing import print_table, progress
from updates import Model, adamw

from gmt_jax import gmt_mask
from gmt_jax._threshold.find import find
from gmt_jax._threshold.layout import TensorLayout, comparison_dtypes
from gmt_jax._threshold.uint64 import UInt64, uint64

TOLERANCE = 1e-3
DEVICES = jax.device_count()


def read_once(leaves: list[jax.Array]) -> list[Any]:
    """Two sums of the bits of every leaf; a single sum is not vectorised on CPU."""

    def both(a: Any, b: Any) -> Any:
        return tuple(map(lax.add, a, b))

    words = [lax.bitcast_convert_type(g, f"uint{8 * g.dtype.itemsize}") for g in leaves]
    return [lax.reduce((w, w + 1), (w.dtype.type(0),) * 2, both, range(w.ndim)) for w in words]


def methods(tree: Tree, stacked_axes: dict[str, int | None]) -> dict[str, Method]:
    """The methods that are timed on gradients, by name."""
    leaves = list(tree.values())
    progress("compiling the search")
    layout = TensorLayout(
        tuple(g.shape for g in leaves),
        tuple(() if axis is None else (axis,) for axis in stacked_axes.values()),
    )
    ranks, slack = (
        layout.expand(uint64([int(r * n) for n in layout.sizes])) for r in (RATIO, TOLERANCE)
    )
    dtypes = comparison_dtypes([g.dtype for g in leaves], layout)
    first = jnp.zeros(layout.num_tensors)

    def search(slack: UInt64 | None) -> tuple[Any, int]:
        """The search from the thresholds that it finds, and its passes."""
        search = jax.jit(lambda leaves, guess: find(leaves, dtypes, layout, ranks, guess, slack))
        found = search(leaves, search(leaves, first).threshold)
        return functools.partial(search, leaves, found.threshold), int(found.passes)

    (exact, passes), (near, fewer) = search(None), search(slack)
    read = jax.jit(read_once)
    mask = functools.partial(gmt_mask, RATIO, stacked_axes=stacked_axes)
    found: dict[str, Method] = {
        "reading the gradient once": lambda: read(leaves),
        "AdamW alone": adamw(tree),
        "AdamW with gmt_mask": adamw(tree, mask()),
        "AdamW with gmt_mask, tolerance 0.001": adamw(tree, mask(tolerance=TOLERANCE)),
        f"threshold, exact: {passes} passes": exact,
        f"threshold, tolerance 0.001: {fewer} passes": near,
    }
    if DEVICES > 1:
        return found
    for name, method in OTHERS.items():
        compiled = jax.jit(functools.partial(method, stacked_axes=stacked_axes))
        found[f"mask by {name}"] = functools.partial(compiled, tree)
    alone = torch_methods(tree, stacked_axes)
    return found | {f"mask by {name}": method for name, method in alone.items()}


def spread(tree: Tree) -> Tree:
    """The tree with the last axis of each leaf that the devices divide sharded over them."""
    mesh = jax.make_mesh((DEVICES,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    out = {}
    for name, g in tree.items():
        spec: list[str | None] = [None] * g.ndim
        axes = [axis for axis in range(g.ndim) if g.shape[axis] % DEVICES == 0]
        if axes and DEVICES > 1:
            spec[axes[-1]] = "x"
        out[name] = jax.device_put(g, NamedSharding(mesh, P(*spec)))
    return out


def print_model(folder: Path, rounds: int, family: bool) -> None:
    """Times a model's gradients and its training step, or the other methods on its gradients."""
    progress(f"loading {folder} and computing its gradients")
    model = Model(folder)
    gradients = jax.jit(jax.grad(model.loss))(model.params)
    size = sum(g.size for g in gradients.values())
    title = f"Gradients of {folder.name}: {size:,} float32 entries"
    if family:
        print_family(title, spread(model.params), spread(gradients), model.stacked_axes, rounds)
        return
    print_table(title, methods(spread(gradients), model.stacked_axes), "AdamW alone", rounds)
    if DEVICES > 1:
        return
    del gradients
    mask = functools.partial(gmt_mask, RATIO, stacked_axes=model.stacked_axes)
    steps = {
        "plain fine-tuning": model.step(),
        "with gmt_mask": model.step(mask()),
        "with gmt_mask, tolerance 0.001": model.step(mask(tolerance=TOLERANCE)),
    }
    print_table("A training step of 2 x 256 tokens", steps, "plain fine-tuning", rounds)


def print_unstacked(layers: int, rounds: int) -> None:
    """Times the compilation and the update of a model with an array for each matrix."""
    model, hidden, ffn, kv, vocabulary = {30: ("135M", 576, 1536, 192, 49152)}.get(
        layers, ("1B", 1024, 3072, 256, 32000)
    )
    matrices = [(hidden, hidden)] * 2 + [(hidden, kv)] * 2 + [(hidden, ffn)] * 2 + [(ffn, hidden)]
    shapes = [*(matrices + [(hidden,)] * 2) * layers, (vocabulary, hidden), (hidden,)]
    tree = spread({str(i): jnp.ones(s) * (i + 1) + jnp.arange(s[-1]) for i, s in enumerate(shapes)})
    found: dict[str, Method] = {}
    for name, masks in (("AdamW alone", []), ("AdamW with gmt_mask", [gmt_mask(RATIO)])):
        before = time.process_time()
        found[name] = adamw(tree, *masks)
        found[name]()
        print(f"{name}: {time.process_time() - before:.1f} s of processor time to compile")
    print_table(f"{model}: {len(tree)} arrays", found, "AdamW alone", rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=float, default=[1e4, 1e5, 1e6, 1e7, 1e8])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--model", type=Path, help="a folder: its gradients and training step")
    parser.add_argument("--family", action="store_true", help="the other methods, beside GMT")
    parser.add_argument(
        "--unstacked", type=int, help="layers, each of nine arrays: compile and run"
    )
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(
        f"jax {jax.__version__} on {DEVICES} x {jax.devices()[0].device_kind}, "
        f"torch {torch.__version__ if torch else 'not installed'}, {os.cpu_count()} cores, "
        f"{platform.machine()}, {platform.system()}"
    )
    if options.unstacked:
        print_unstacked(options.unstacked, options.rounds)
        return
    if options.model:
        print_model(options.model, options.rounds, options.family)
        return
    for dtype in options.dtypes:
        for size in map(int, options.sizes):
            g = jax.random.normal(jax.random.key(0), (size,), dtype)
            of_g = methods(spread({"g": g}), {"g": None})
            print_table(f"{size:,} normal {dtype} entries", of_g, "AdamW alone", options.rounds)


if __name__ == "__main__":
    main()
