"""HFT and LISA: which matrices are trained is drawn by their place in the model.

The draw depends on the key, on the number of the round and on the model's roles alone, so that it
is the same on every mesh, after a restart, and whether layers are stacked or not.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmt_jax.param_roles import ROLES, read_model
from gmt_jax.tree_paths import Key, as_key

# The number of updates done -> a tree of bool masks, each broadcastable to its leaf: True where
# it is trained in this round. Pure; the count may be traced.
MaskSchedule = Callable[[jax.Array | int], Any]


def hft_schedule(
    params: Any, key: Key, every: int, *, roles: Mapping[str, str] = ROLES
) -> MaskSchedule:
    """What Half Fine-Tuning trains of a model, as a function of the number of updates done.

    In each transformer layer, 2 of the 4 attention matrices and half of the norms are trained; of
    the 3 feed-forward matrices, 2 in a random half of the layers and 1 in the others. Embeddings
    and head are always trained. Every `every` updates a new half is drawn.

    What the paper leaves open is settled so: a half is rounded up, so that of an odd number L of
    layers (L + 1) / 2 train 2 feed-forward matrices. Norms are halved layer by layer, query and
    key norms among them, and the final norm is always trained: of the 2 L + 1 norms of a Llama
    L + 1 are. A bias goes with its matrix. A tied head is the embeddings.

    Args:
      params: a tree of arrays or of their shapes.
      key: of all draws.
      every: updates a round; the paper's round is a whole run, or a stage of several.
      roles: what each path is, as in `ROLES`.

    Raises:
      ValueError: naming every path that is of no role and every member that a layer lacks; if
        `every` is less than 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from gmt_jax.structured import hft_schedule
      >>> ones = jnp.ones((4, 2, 2))  # Four layers.
      >>> params = {"layers": {"mlp": {"gate": ones, "up": ones, "down": ones}}}
      >>> schedule = hft_schedule(params, 0, 100)
      >>> for name, mask in schedule(0)["layers"]["mlp"].items():
      ...     print(name, mask.ravel())
      down [False  True  True False]
      gate [ True  True False  True]
      up [ True False False False]

    References:
      Hui et al., `HFT: Half Fine-Tuning for Large Language Models
      <https://arxiv.org/abs/2404.18466>`_, 2024.
    """
    _check_positive(every=every)
    model = read_model(params, roles)

    def schedule(count: jax.Array | int) -> Any:
        sizes = tuple(len(members) for members in model.groups.values())
        halves = _draw_halves(_round_key(key, count, every), model.layers, sizes)
        chosen: dict[str, jax.Array] = {}
        for members, half in zip(model.groups.values(), halves, strict=True):
            chosen |= zip(members, half, strict=True)
        return model.masks(chosen)

    return schedule


def lisa_schedule(
    params: Any, num_layers: int, key: Key, every: int, *, roles: Mapping[str, str] = ROLES
) -> MaskSchedule:
    """What LISA trains of a model: a few random layers, as a function of the updates done.

    Of the transformer layers `num_layers` are trained, each of them as likely as another; every
    `every` updates they are drawn anew. Embeddings, head and final norm belong to no layer and are
    always trained.

    Args:
      params: a tree of arrays or of their shapes.
      num_layers: how many layers are trained in a round.
      key: of all draws.
      every: updates a round.
      roles: what each path is, as in `ROLES`.

    Raises:
      ValueError: naming every path that is of no role, or if there are fewer layers; if
        `num_layers` or `every` is less than 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from gmt_jax.structured import lisa_schedule
      >>> params = {"layers": {"attention_norm": jnp.ones((6, 2))}}  # Six layers.
      >>> print(lisa_schedule(params, 2, 0, 20)(0)["layers"]["attention_norm"].ravel())
      [False  True False  True False False]

    References:
      Pan et al., `LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model
      Fine-Tuning <https://arxiv.org/abs/2403.17919>`_, 2024.
    """
    _check_positive(every=every, num_layers=num_layers)
    model = read_model(params, roles)
    if isinstance(num_layers, int) and num_layers > model.layers:
        raise ValueError(f"cannot train {num_layers} of {model.layers} layers")

    def schedule(count: jax.Array | int) -> Any:
        chosen = _draw_layers(_round_key(key, count, every), model.layers, num_layers)
        members = [role for roles in model.groups.values() for role in roles]
        return model.masks(dict.fromkeys(members, chosen))

    return schedule


def _round_key(key: Key, count: jax.Array | int, every: int) -> jax.Array:
    return jax.random.fold_in(as_key(key), count // every)


@partial(jax.jit, static_argnames=("layers", "sizes"))
def _draw_halves(key: jax.Array, layers: int, sizes: tuple[int, ...]) -> list[jax.Array]:
    """Of groups of these sizes, who is chosen in which layer: a bool [size, layers] a group."""
    drawn = jax.random.bits(key, (sum(sizes) + len(sizes), layers))
    halves = []
    for size in sizes:
        own, of_layers, drawn = drawn[:size], drawn[size], drawn[size + 1 :]
        # Of an odd number, the larger part is chosen in half of the layers.
        larger = _lowest(of_layers, (layers + 1) // 2)
        halves.append(_lowest(own.T, size // 2 + larger[:, None] * (size % 2)).T)
    return halves


@partial(jax.jit, static_argnames="layers")
def _draw_layers(key: jax.Array, layers: int, most: jax.Array | int) -> jax.Array:
    """Which of the layers are chosen, bool [layers]."""
    return _lowest(jax.random.bits(key, (layers,)), most)


def _lowest(drawn: jax.Array, most: jax.Array | int) -> jax.Array:
    """Which entries are among the `most` lowest of the last axis; of equals, the first are."""
    here, other = drawn[..., :, None], drawn[..., None, :]
    first = np.tri(drawn.shape[-1], k=-1, dtype=bool)
    return jnp.sum((other < here) | ((other == here) & first), -1) < most


def _check_positive(**numbers: Any) -> None:
    for name, number in numbers.items():
        if isinstance(number, (int, float)) and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
