"""Other ways to mask the smallest gradient entries, in JAX and in PyTorch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

torch: Any
try:
    import torch
except ImportError:
    torch = None

RATIO = 0.2
Tree = dict[str, jax.Array]
Method = Callable[[], Any]


def by_threshold(
    threshold: Callable[[jax.Array], jax.Array],
) -> Callable[..., Any]:
    """Masks the entries of every tensor below a threshold, a function of its |g|."""

    def of_tensor(g: jax.Array) -> jax.Array:
        size = jnp.abs(g)
        return jnp.where(size < threshold(size.ravel()), 0, g)

    def masked(tree: Tree, stacked_axes: dict[str, int | None]) -> Any:
        out = {}
        for name, g in tree.items():
            mask: Any = of_tensor
            if (
                stacked_axes[name] is not None
            ):  # a loop, so that copies of one layer exist at a time
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
    """As in PyTorch code: quantile takes at most 2**24 entries, kthvalue any number."""
    if a.numel() > 2**24:
        return a.kthvalue(int(RATIO * a.numel()) + 1).values
    return torch.quantile(a.float(), RATIO, interpolation="higher")


TORCH = {
    "torch.topk": lambda a: torch.topk(a, kept(a.numel())).values[-1],
    "torch.kthvalue": lambda a: a.kthvalue(int(RATIO * a.numel()) + 1).values,
    "torch.quantile": torch_quantile,
}


def torch_methods(tree: Tree, stacked_axes: dict[str, int | None]) -> dict[str, Method]:
    """PyTorch's methods, which mask copies of the gradients tensor by tensor."""
    if torch is None:
        return {}
    kind = torch.bfloat16 if next(iter(tree.values())).dtype == jnp.bfloat16 else torch.float32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = []
    for name, g in tree.items():
        whole = torch.from_numpy(np.array(g, np.float32)).to(device, kind)
        tensors += list(whole) if stacked_axes[name] is not None else [whole]

    def method(threshold: Callable[[Any], Any]) -> Method:
        def run() -> None:
            for g in tensors:
                size = g.abs()
                torch.where(size >= threshold(size.flatten()), g, 0)
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    return {name: method(threshold) for name, threshold in TORCH.items()}
