"""HFT and LISA as mask schedules: matrices and layers are selected by their roles in the model.

What is selected depends only on the key, the number of the round and the roles of the parameters:
it is the same on every mesh, after a restart, and whether layers are stacked or not.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gmt_jax.param_roles import ROLES, read_model
from gmt_jax.tree_paths import as_key, path_name
from gmt_jax.types import Key, Mask, MaskSchedule, is_number


def hft_schedule(
    params: optax.Params,
    key: Key,
    every: int,
    *,
    roles: Mapping[str, str] = ROLES,
    layer_axis: int = 0,
) -> MaskSchedule:
    """The masks of Half Fine-Tuning.

    In each transformer layer, 2 of the 4 attention matrices and half of the norms are trained; of
    the 3 feed-forward matrices, 2 in a random half of the layers and 1 in the others. Embeddings
    and head are always trained. A new half is drawn every `every` updates. A feed-forward layer
    without a gate has 2 matrices, of which 1 is trained.

    The paper leaves these open: halves are rounded up, so that of an odd number L of layers
    (L + 1) / 2 train 2 feed-forward matrices. Norms are halved in each layer, query and key norms
    among them, and the final norm is always trained: L + 1 of the 2 L + 1 norms of a Llama are. A
    bias is trained with its matrix. A tied head is the embeddings. The paper's round is a whole
    training run, or one of several stages.

    Args:
      params: a tree of arrays or of their shapes.
      key: a key as from ``jax.random.key``, or an integer n for ``jax.random.key(n)``.
      every: the number of updates in a round.
      roles: patterns of the paths of each role, as in `ROLES`.
      layer_axis: the axis along which layers are stacked, if they are: 1 in MaxText by default.

    Returns:
      A pure function of the number of updates done, which may be traced. It returns a tree of
      bools, one array for each parameter and broadcastable to it: True where it is trained.

    Raises:
      ValueError: if paths have no role, or a layer lacks a member of a group (all of these are
        named), or if `every` is no integer of at least 1.

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
    model = read_model(params, roles, layer_axis)

    def schedule(count: jax.Array | int) -> Mask:
        sizes = tuple(len(members) for members in model.groups.values())
        halves = _draw_halves(_round_key(key, count, every), model.num_layers, sizes)
        trained: dict[str, jax.Array] = {}
        for members, half in zip(model.groups.values(), halves, strict=True):
            trained |= zip(members, half, strict=True)
        return model.mask(trained)

    return schedule


def lisa_schedule(
    params: optax.Params,
    num_layers: int,
    key: Key,
    every: int,
    *,
    roles: Mapping[str, str] = ROLES,
    layer_axis: int = 0,
) -> MaskSchedule:
    """The masks of LISA: a few random layers.

    Of the transformer layers, `num_layers` are trained, each with the same probability; new ones
    are drawn every `every` updates. Embeddings, head and final norm belong to no layer and are
    always trained.

    Args:
      params: a tree of arrays or of their shapes.
      num_layers: the number of layers trained in a round.
      key: a key as from ``jax.random.key``, or an integer n for ``jax.random.key(n)``.
      every: the number of updates in a round.
      roles: patterns of the paths of each role, as in `ROLES`.
      layer_axis: the axis along which layers are stacked, if they are: 1 in MaxText by default.

    Returns:
      As `hft_schedule`.

    Raises:
      ValueError: if paths have no role (all of them are named), if there are fewer layers, or if
        `num_layers` or `every` is no integer of at least 1.

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
    model = read_model(params, roles, layer_axis)
    if is_number(num_layers) and num_layers > model.num_layers:
        raise ValueError(f"cannot train {num_layers} of {model.num_layers} layers")

    def schedule(count: jax.Array | int) -> Mask:
        trained = _draw_layers(_round_key(key, count, every), model.num_layers, num_layers)
        members = [role for roles in model.groups.values() for role in roles]
        return model.mask(dict.fromkeys(members, trained))

    return schedule


def refuse_constants(mask: Mask, count: jax.Array) -> None:
    """Refuses masks that a compiled update would hold as constants of some size."""
    if isinstance(count, jax.core.Tracer):
        for path, leaf in jax.tree_util.tree_leaves_with_path(mask):
            if not isinstance(leaf, jax.core.Tracer) and np.size(leaf) >= 1 << 20:
                raise ValueError(
                    f"the schedule's mask of {path_name(path)} does not depend on the count, so "
                    "that it would be a constant of the program; give it to fixed_mask"
                )


def _round_key(key: Key, count: jax.Array | int, every: int) -> jax.Array:
    return jax.random.fold_in(as_key(key), count // every)


@partial(jax.jit, static_argnames=("num_layers", "sizes"))
def _draw_halves(key: jax.Array, num_layers: int, sizes: tuple[int, ...]) -> list[jax.Array]:
    """Which members of groups of these sizes are trained in which layer: bool [size, L] a group."""
    drawn = jax.random.bits(key, (sum(sizes) + len(sizes), num_layers))
    halves = []
    for size in sizes:
        of_members, of_layers, drawn = drawn[:size], drawn[size], drawn[size + 1 :]
        # Of an odd number of members, the larger half is trained in half of the layers.
        larger = _lowest(of_layers, (num_layers + 1) // 2).astype(jnp.int32)
        halves.append(_lowest(of_members.T, size // 2 + larger[:, None] * (size % 2)).T)
    return halves


@partial(jax.jit, static_argnames="num_layers")
def _draw_layers(key: jax.Array, num_layers: int, most: jax.Array | int) -> jax.Array:
    """Which layers are trained, bool [num_layers]: `most` of them."""
    return _lowest(jax.random.bits(key, (num_layers,)), most)


def _lowest(drawn: jax.Array, most: jax.Array | int) -> jax.Array:
    """Which entries are among the `most` lowest of the last axis; of equal ones, the first are."""
    this, other = drawn[..., :, None], drawn[..., None, :]
    earlier = np.tri(drawn.shape[-1], k=-1, dtype=bool)
    earlier = earlier.reshape((1,) * (drawn.ndim - 1) + earlier.shape)
    return jnp.sum((other < this) | ((other == this) & earlier), -1) < most


def _check_positive(**numbers: object) -> None:
    for name, number in numbers.items():
        if is_number(number) and not (number >= 1 and number % 1 == 0):
            raise ValueError(f"{name} must be an integer of at least 1, got {number}")
