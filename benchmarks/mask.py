"""Times the mask beside AdamW alone, other ways to mask in JAX, and PyTorch's.

    python benchmarks/mask.py                                       # one tensor of each size
    python benchmarks/mask.py --model models/SmolLM2-135M-Instruct  # a model's, and its step
    python benchmarks/mask.py --model models/SmolLM2-135M-Instruct --family  # the other methods
    python benchmarks/mask.py --unstacked 30                        # 272 arrays: compiling, update
    python benchmarks/mask.py --unstacked 80                        # 723 arrays: compiling
    XLA_FLAGS=--xla_force_host_platform_device_count=8 NPROC=32 python benchmarks/mask.py

All rows of a table are timed in turn, round after round. The median of the rounds is printed with
its ratio to that of AdamW's update alone. A search begins at the thresholds of another batch, as in
training; of random numbers, at those of others that are 1.15 times as large. Every method zeroes a
fifth of each tensor, the entries with the smallest magnitude. With several devices, tensors are
sharded over them and methods that gather are left out. PyTorch is timed where torch is installed.
Progress goes to the error stream.
"""

import argparse
import functools
import itertools
import os
import platform
from collections.abc import Sequence
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
from updates import Model, adamw, like_another_batch, seconds_to_compile

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


def methods(
    trees: Sequence[Tree], stacked_axes: dict[str, int | None], others: bool
) -> dict[str, Method]:
    """The methods that are timed on the gradients of two batches, by name."""
    tree, leaves = trees[0], list(trees[0].values())
    progress("compiling the search")
    layout = TensorLayout(
        tuple(g.shape for g in leaves),
        tuple(() if axis is None else (axis,) for axis in stacked_axes.values()),
    )
    ranks, slack = (
        layout.expand(uint64([int(r * n) for n in layout.sizes])) for r in (RATIO, TOLERANCE)
    )
    dtypes = comparison_dtypes([g.dtype for g in leaves], layout)

    def search(slack: UInt64 | None) -> tuple[Any, int]:
        """The search in each gradient, from the thresholds of the other, and its most passes."""
        compiled = jax.jit(lambda leaves, guess: find(leaves, dtypes, layout, ranks, guess, slack))
        turns = itertools.cycle([list(tree.values()) for tree in trees])
        guess = [jnp.zeros(layout.num_tensors)]

        def run() -> Any:
            found = compiled(next(turns), guess[0])
            guess[0] = found.threshold
            return found

        return run, max([int(run().passes) for _ in range(3)][1:])  # The first has no guess.

    (exact, passes), (near, fewer) = search(None), search(slack)
    read = jax.jit(read_once)
    mask = functools.partial(gmt_mask, RATIO, stacked_axes=stacked_axes)
    found: dict[str, Method] = {
        "reading the gradient once": lambda: read(leaves),
        "AdamW alone": adamw(trees),
        "AdamW with gmt_mask": adamw(trees, mask()),
        "AdamW with gmt_mask, tolerance 0.001": adamw(trees, mask(tolerance=TOLERANCE)),
        f"threshold, exact: {passes} passes": exact,
        f"threshold, tolerance 0.001: {fewer} passes": near,
    }
    if DEVICES > 1 or not others:
        return found
    for name, method in OTHERS.items():
        compiled = jax.jit(functools.partial(method, stacked_axes=stacked_axes))
        found[f"mask by {name}"] = functools.partial(compiled, tree)
    alone = torch_methods(tree, stacked_axes)
    return found | {f"mask by {name}": method for name, method in alone.items()}


def shardings(shapes: dict[str, tuple[int, ...]]) -> dict[str, NamedSharding]:
    """Of arrays whose last axis that the devices divide is sharded over them."""
    mesh = jax.make_mesh((DEVICES,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    out = {}
    for name, shape in shapes.items():
        spec: list[str | None] = [None] * len(shape)
        axes = [axis for axis, size in enumerate(shape) if size % DEVICES == 0]
        if axes and DEVICES > 1:
            spec[axes[-1]] = "x"
        out[name] = NamedSharding(mesh, P(*spec))
    return out


def spread(tree: Tree) -> Tree:
    """The tree with the last axis of each leaf that the devices divide sharded over them."""
    return jax.device_put(tree, shardings({name: g.shape for name, g in tree.items()}))


def print_model(folder: Path, rounds: int, family: bool, others: bool) -> None:
    """Times a model's gradients and its training step, or the other methods on its gradients."""
    progress(f"loading {folder} and computing its gradients")
    model = Model(folder)
    gradient = jax.jit(jax.grad(model.loss))
    gradients = [spread(gradient(model.params, batch)) for batch in model.batches]
    size = sum(g.size for g in gradients[0].values())
    title = f"Gradients of {folder.name}: {size:,} float32 entries"
    if family:
        print_family(title, spread(model.params), gradients, model.stacked_axes, rounds)
        return
    of_gradients = methods(gradients, model.stacked_axes, others)
    print_table(title, of_gradients, "AdamW alone", rounds)
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


# Layers: name, hidden size, that of the MLP and of keys and values, vocabulary, heads of their own.
UNSTACKED = {30: ("135M", 576, 1536, 192, 49152, 0), 80: ("70B", 8192, 28672, 1024, 128256, 1)}


def print_unstacked(layers: int, rounds: int) -> None:
    """Times compiling the update of a model with an array for each matrix, and the update."""
    model, hidden, ffn, kv, vocabulary, heads = UNSTACKED[layers]
    matrices = [(hidden, hidden)] * 2 + [(hidden, kv)] * 2 + [(hidden, ffn)] * 2 + [(ffn, hidden)]
    layer, others = matrices + [(hidden,)] * 2, [(vocabulary, hidden)] * (1 + heads) + [(hidden,)]
    shapes = {f"{n}/{i}": shape for n in range(layers) for i, shape in enumerate(layer)}
    shapes |= {f"other/{i}": shape for i, shape in enumerate(others)}
    stacked = {str(i): (layers, *shape) for i, shape in enumerate(layer)}
    stacked |= {f"{i} alone": shape for i, shape in enumerate(others)}
    forms = {f"{len(shapes)} arrays": (shapes, None)}
    forms["stacked"] = (stacked, {name: None if "alone" in name else 0 for name in stacked})
    updates: dict[str, Method] = {}
    for form, (of_form, axes) in forms.items():
        ways = {"AdamW alone": [], "AdamW with gmt_mask": [gmt_mask(RATIO, stacked_axes=axes)]}
        types = {
            name: jax.ShapeDtypeStruct(of_form[name], jnp.float32, sharding=sharding)
            for name, sharding in shardings(of_form).items()
        }
        seconds_to_compile(dict(list(types.items())[-1:]))  # What only the first compilation costs.
        for name, first in ways.items():
            seconds = seconds_to_compile(types, *first)
            print(f"{form}, {name}: {seconds:.1f} s of processor time to compile", flush=True)
        if layers == 30:
            keys = zip(types, jax.random.split(jax.random.key(0), len(types)), strict=True)
            tree = spread({name: jax.random.normal(key, of_form[name]) for name, key in keys})
            trees = [tree, like_another_batch(tree)]
            updates |= {f"{form}, {name}": adamw(trees, *first) for name, first in ways.items()}
    if updates:
        print_table(f"Updates of {model}", updates, "stacked, AdamW with gmt_mask", rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=float, default=[1e4, 1e5, 1e6, 1e7, 1e8])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--model", type=Path, help="a folder: its gradients and training step")
    parser.add_argument("--family", action="store_true", help="the other methods, beside GMT")
    parser.add_argument(
        "--unstacked", type=int, choices=UNSTACKED, help="layers, each of nine arrays"
    )
    parser.add_argument(
        "--no-others", dest="others", action="store_false", help="leave out other ways to mask"
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
        print_model(options.model, options.rounds, options.family, options.others)
        return
    for dtype in options.dtypes:
        for size in map(int, options.sizes):
            tree = spread({"g": jax.random.normal(jax.random.key(0), (size,), dtype)})
            of_g = methods([tree, like_another_batch(tree)], {"g": None}, options.others)
            print_table(f"{size:,} normal {dtype} entries", of_g, "AdamW alone", options.rounds)


if __name__ == "__main__":
    main()
