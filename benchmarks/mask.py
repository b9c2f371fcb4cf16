"""Times the mask beside AdamW alone, other ways to mask in JAX, and PyTorch's.

    python benchmarks/mask.py                                       # one tensor of each size
    python benchmarks/mask.py --model models/SmolLM2-135M-Instruct  # a model's, and its step
    python benchmarks/mask.py --model models/SmolLM2-135M-Instruct --family  # the other methods
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
from pathlib import Path
from typing import Any

import jax
from family import print_family
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from others import OTHERS, RATIO, Method, Tree, torch, torch_methods
from timing import print_table, progress
from updates import Model, adamw

from gmt_jax import gmt_mask
from gmt_jax._threshold.layout import TensorLayout
from gmt_jax._threshold.search import select
from gmt_jax._threshold.uint64 import uint64

TOLERANCE = 1e-3
DEVICES = jax.device_count()


def read_once(leaves: list[jax.Array]) -> list[Any]:
    """Two sums of the bits of every leaf; a single sum is not vectorised on CPU."""

    def both(a: Any, b: Any) -> Any:
        return tuple(map(lax.add, a, b))

    words = [lax.bitcast_convert_type(g, f"uint{8 * g.dtype.itemsize}") for g in leaves]
    return [lax.reduce((w, w + 1), (w.dtype.type(0),) * 2, both, range(w.ndim)) for w in words]


def methods(tree: Tree, num_stacked_axes: dict[str, int]) -> dict[str, Method]:
    """The methods that are timed on gradients, by name."""
    leaves = list(tree.values())
    layout = TensorLayout(tuple(g.shape for g in leaves), tuple(num_stacked_axes.values()))
    ranks, slack = (uint64([int(r * n) for n in layout.sizes]) for r in (RATIO, TOLERANCE))
    progress("compiling the search")
    exact, near = (select(leaves, ranks, layout, s).passes for s in (None, slack))
    read = jax.jit(read_once)
    mask = functools.partial(gmt_mask, RATIO, num_stacked_axes=num_stacked_axes)
    found: dict[str, Method] = {
        "reading the gradient once": lambda: read(leaves),
        "AdamW alone": adamw(tree),
        "AdamW with gmt_mask": adamw(tree, mask()),
        "AdamW with gmt_mask, tolerance 0.001": adamw(tree, mask(tolerance=TOLERANCE)),
        f"threshold, exact: {exact} passes": lambda: select(leaves, ranks, layout),
        f"threshold, tolerance 0.001: {near} passes": lambda: select(leaves, ranks, layout, slack),
    }
    if DEVICES > 1:
        return found
    for name, method in OTHERS.items():
        compiled = jax.jit(functools.partial(method, num_stacked_axes=num_stacked_axes))
        found[f"mask by {name}"] = functools.partial(compiled, tree)
    alone = torch_methods(tree, num_stacked_axes)
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
        print_family(title, spread(model.params), spread(gradients), model.num_stacked_axes, rounds)
        return
    print_table(title, methods(spread(gradients), model.num_stacked_axes), "AdamW alone", rounds)
    if DEVICES > 1:
        return
    del gradients
    mask = functools.partial(gmt_mask, RATIO, num_stacked_axes=model.num_stacked_axes)
    steps = {
        "plain fine-tuning": model.step(),
        "with gmt_mask": model.step(mask()),
        "with gmt_mask, tolerance 0.001": model.step(mask(tolerance=TOLERANCE)),
    }
    print_table("A training step of 2 x 256 tokens", steps, "plain fine-tuning", rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=float, default=[1e4, 1e5, 1e6, 1e7, 1e8])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--model", type=Path, help="a folder: its gradients and training step")
    parser.add_argument("--family", action="store_true", help="the other methods, beside GMT")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(
        f"jax {jax.__version__} on {DEVICES} x {jax.devices()[0].device_kind}, "
        f"torch {torch.__version__ if torch else 'not installed'}, {os.cpu_count()} cores, "
        f"{platform.machine()}, {platform.system()}"
    )
    if options.model:
        print_model(options.model, options.rounds, options.family)
        return
    for dtype in options.dtypes:
        for size in map(int, options.sizes):
            g = jax.random.normal(jax.random.key(0), (size,), dtype)
            of_g = methods(spread({"g": g}), {"g": 0})
            print_table(f"{size:,} normal {dtype} entries", of_g, "AdamW alone", options.rounds)


if __name__ == "__main__":
    main()
