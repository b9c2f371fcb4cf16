"""What the mask costs, beside the floor, other ways in JAX, and PyTorch's.

    python benchmarks/mask.py                                       # one tensor of each size
    python benchmarks/mask.py --model models/SmolLM2-135M-Instruct  # a model's, and its step
    XLA_FLAGS=--xla_force_host_platform_device_count=8 NPROC=32 python benchmarks/mask.py

All rows of a table are timed in turn, round after round, and the median of the rounds is printed
with its ratio to AdamW's update alone. Every method zeroes a fifth of each tensor, the entries of
least magnitude. Over several devices the tensors are split among them, and only what needs no
gathering is timed. PyTorch's rows appear where torch is installed.
"""

import argparse
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gmt_jax import by_score, gmt, gmt_mask
from gmt_jax.rows import Layout
from gmt_jax.threshold import select
from gmt_jax.wide import wide
from train.model import is_stacked, load_model_config, load_params
from train.objective.sft import sft_loss
from train.tokenizer import load_tokenizer

torch: Any
try:
    import torch
except ImportError:
    torch = None

RATIO, TOLERANCE = 0.2, 1e-3
SCORES = ("gradient_to_weight", "weight", "random")
SLOW = 2.0  # seconds: a method slower than this is timed once
DEVICES = jax.device_count()
Tree = dict[str, jax.Array]
Method = Callable[[], Any]


def by_threshold(
    threshold: Callable[[jax.Array], jax.Array],
) -> Callable[..., Any]:
    """Masks every tensor below a threshold that a function of its |g| finds."""

    def of_tensor(g: jax.Array) -> jax.Array:
        size = jnp.abs(g)
        return jnp.where(size < threshold(size.ravel()), 0, g)

    def masked(tree: Tree, stacked: dict[str, int]) -> Any:
        out = {}
        for name, g in tree.items():
            mask: Any = of_tensor
            if stacked[name]:  # a loop, so that one layer's copies are there at a time
                mask = lambda g: lax.map(of_tensor, g)  # noqa: E731
            out[name] = mask(g)
        return out

    return masked


def kept(n: int) -> int:
    return n - int(RATIO * n)


OTHERS = {
    "jnp.quantile": by_threshold(
        lambda a: jnp.quantile(a.astype("float32"), RATIO, method="higher")
    ),
    "jnp.sort": by_threshold(lambda a: jnp.sort(a)[int(RATIO * a.size)]),
    "lax.top_k": by_threshold(lambda a: lax.top_k(a, kept(a.size))[0][-1]),
    "lax.approx_max_k": by_threshold(lambda a: lax.approx_max_k(a, kept(a.size))[0][-1]),
}


def torch_quantile(a: Any) -> Any:
    """As PyTorch code has it: quantile takes no more than 2**24 entries, kthvalue any number."""
    if a.numel() > 2**24:
        return a.kthvalue(int(RATIO * a.numel()) + 1).values
    return torch.quantile(a.float(), RATIO, interpolation="higher")


TORCH = {
    "torch.topk": lambda a: torch.topk(a, kept(a.numel())).values[-1],
    "torch.kthvalue": lambda a: a.kthvalue(int(RATIO * a.numel()) + 1).values,
    "torch.quantile": torch_quantile,
}


def torch_methods(tree: Tree, stacked: dict[str, int]) -> dict[str, Method]:
    """Mask copies of the gradients in place, tensor by tensor."""
    if torch is None:
        return {}
    kind = torch.bfloat16 if next(iter(tree.values())).dtype == jnp.bfloat16 else torch.float32
    tensors = []
    for name, g in tree.items():
        whole = torch.from_numpy(np.array(g, np.float32)).to(kind)
        tensors += list(whole) if stacked[name] else [whole]

    def method(threshold: Callable[[Any], Any]) -> Method:
        def run() -> None:
            for g in tensors:
                size = g.abs()
                torch.where(size >= threshold(size.flatten()), g, 0)

        return run

    return {name: method(threshold) for name, threshold in TORCH.items()}


def relatives(stacked: dict[str, int]) -> dict[str, Any]:
    """The family, each drawing its mask anew at every update, or holding the first one."""
    inner, by = optax.adamw(1e-5), functools.partial(by_score, stacked=stacked)
    scores = {f"by_score({s!r})": by(inner, RATIO, score=s) for s in SCORES}
    return {
        "gmt": gmt(inner, RATIO, stacked=stacked),
        **scores,
        "one_off": by(inner, RATIO, every=None),
    }


def adamw(tree: Tree, *first: optax.GradientTransformation) -> Method:
    """An AdamW update behind other transformations."""
    return adamw_under(tree, optax.chain(*first, optax.adamw(1e-5)))


def adamw_under(tree: Tree, optimizer: optax.GradientTransformation) -> Method:
    """An update of parameters that are donated, as in training."""

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(update, donate_argnums=(0, 1))
    held = [jax.tree.map(jnp.copy, tree), jax.jit(optimizer.init)(tree)]

    def run() -> Any:
        held[:] = compiled(*held, tree)
        return held

    return run


def read_once(leaves: list[jax.Array]) -> list[Any]:
    """Two sums of every leaf's bits: one sum is not vectorised on CPU."""

    def both(a: Any, b: Any) -> Any:
        return tuple(map(lax.add, a, b))

    words = [lax.bitcast_convert_type(g, f"uint{8 * g.dtype.itemsize}") for g in leaves]
    return [lax.reduce((w, w + 1), (w.dtype.type(0),) * 2, both, range(w.ndim)) for w in words]


def methods(tree: Tree, stacked: dict[str, int]) -> dict[str, Method]:
    """Everything that is timed on gradients, by name."""
    leaves = list(tree.values())
    layout = Layout(tuple(g.shape for g in leaves), tuple(stacked.values()))
    ranks, slack = (wide([int(r * n) for n in layout.sizes]) for r in (RATIO, TOLERANCE))
    exact, near = (select(leaves, ranks, layout, s).passes for s in (None, slack))
    read = jax.jit(read_once)
    mask = functools.partial(gmt_mask, RATIO, stacked=stacked)
    found: dict[str, Method] = {
        "reading the gradient once": lambda: read(leaves),
        "AdamW alone": adamw(tree),
        "AdamW with gmt_mask": adamw(tree, mask()),
        "AdamW with gmt_mask, tolerance 0.001": adamw(tree, mask(tolerance=TOLERANCE)),
        f"threshold, exact: {exact} passes": lambda: select(leaves, ranks, layout),
        f"threshold, tolerance 0.001: {near} passes": lambda: select(leaves, ranks, layout, slack),
    }
    if sum(g.size for g in leaves) <= 10**7:  # each has parameters and moments of its own
        for name, optimizer in relatives(stacked).items():
            found[f"AdamW under {name}"] = adamw_under(tree, optimizer)
    if DEVICES > 1:
        return found
    for name, method in OTHERS.items():
        compiled = jax.jit(functools.partial(method, stacked=stacked))
        found[f"mask by {name}"] = functools.partial(compiled, tree)
    alone = torch_methods(tree, stacked)
    return found | {f"mask by {name}": method for name, method in alone.items()}


def timed(methods: dict[str, Method], rounds: int) -> dict[str, float]:
    """The median seconds of each, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for method in methods.values():
        start = time.perf_counter()
        jax.block_until_ready(method())  # compiles
        if time.perf_counter() - start < 5 * SLOW:
            jax.block_until_ready(method())  # and again, for arrays that lie otherwise by now
    for _ in range(rounds):
        for name, method in methods.items():
            if seconds[name] and seconds[name][0] > SLOW:
                continue
            start = time.perf_counter()
            jax.block_until_ready(method())
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def print_table(title: str, methods: dict[str, Method], floor: str, rounds: int) -> None:
    """One row a method, with its ratio to one of them."""
    results = timed(methods, rounds)
    print(f"\n{title}\n\n| | ms | of {floor} |\n|---|---|---|")
    for name, seconds in results.items():
        print(f"| {name} | {seconds * 1e3:,.2f} | {seconds / results[floor]:,.3f} |", flush=True)


def spread(tree: Tree) -> Tree:
    """The last axis that the devices divide is split among them."""
    mesh = jax.make_mesh((DEVICES,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    out = {}
    for name, g in tree.items():
        spec: list[str | None] = [None] * g.ndim
        axes = [axis for axis in range(g.ndim) if g.shape[axis] % DEVICES == 0]
        if axes and DEVICES > 1:
            spec[axes[-1]] = "x"
        out[name] = jax.device_put(g, NamedSharding(mesh, P(*spec)))
    return out


class Model:
    """A model with its weights, and 2 x 256 tokens of the standard library's source."""

    def __init__(self, folder: Path) -> None:
        self.config = load_model_config(folder)
        flat, self.treedef = jax.tree.flatten_with_path(load_params(folder, self.config))
        self.params = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in flat}
        self.stacked = dict(zip(self.params, (is_stacked(path) for path, _ in flat), strict=True))
        ids = load_tokenizer(folder, None)(Path(argparse.__file__).read_text())["input_ids"]
        rows = np.array(ids[: 2 * 257], np.int32).reshape(2, 257)
        columns = {"tokens": rows[:, :-1], "targets": rows[:, 1:], "weights": np.ones((2, 256))}
        self.batch = {name: jnp.asarray(column) for name, column in columns.items()}

    def loss(self, params: Tree) -> jax.Array:
        """Nats a token."""
        tree = jax.tree.unflatten(self.treedef, list(params.values()))
        total, weight = sft_loss(self.config, tree, self.batch, dtype="float32", remat="none")
        return total / weight

    def step(self, *first: optax.GradientTransformation) -> Method:
        """A training step with AdamW."""
        optimizer = optax.chain(*first, optax.adamw(1e-5))

        def update(params: Tree, state: Any) -> Any:
            updates, state = optimizer.update(jax.grad(self.loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        compiled = jax.jit(update, donate_argnums=(0, 1))
        held = [jax.tree.map(jnp.copy, self.params), jax.jit(optimizer.init)(self.params)]

        def run() -> Any:
            held[:] = compiled(*held)
            return held

        return run


def print_model(folder: Path, rounds: int) -> None:
    """A model's gradients, then its training step."""
    model = Model(folder)
    gradients = jax.jit(jax.grad(model.loss))(model.params)
    size = sum(g.size for g in gradients.values())
    title = f"Gradients of {folder.name}: {size:,} float32 entries"
    print_table(title, methods(spread(gradients), model.stacked), "AdamW alone", rounds)
    if DEVICES > 1:
        return
    del gradients
    mask = functools.partial(gmt_mask, RATIO, stacked=model.stacked)
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
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    print(
        f"jax {jax.__version__} on {DEVICES} x {jax.devices()[0].device_kind}, "
        f"torch {torch.__version__ if torch else 'not installed'}, {os.cpu_count()} cores, "
        f"{platform.machine()}, {platform.system()}"
    )
    if chosen.model:
        print_model(chosen.model, chosen.rounds)
        return
    for dtype in chosen.dtypes:
        for size in map(int, chosen.sizes):
            g = jax.random.normal(jax.random.key(0), (size,), dtype)
            of_g = methods(spread({"g": g}), {"g": 0})
            print_table(f"{size:,} normal {dtype} entries", of_g, "AdamW alone", chosen.rounds)


if __name__ == "__main__":
    main()
