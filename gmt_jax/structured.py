"""HFT and LISA: which matrices are trained is drawn by their place in the model.

The draw depends on the seed, on the number of the round and on the model's roles alone, so that it
is the same on every mesh, after a restart, and whether layers are stacked or not.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gmt_jax.roles import ROLES, read_model

# The number of updates done -> a tree of bool masks, each broadcastable to its leaf: True where
# it is trained in this round. Pure; the count may be traced.
Choice = Callable[[jax.Array | int], Any]


class ChoiceState(NamedTuple):
    """State of `hft` and `lisa`: what is drawn follows from the count."""

    count: jax.Array  # type: ignore[assignment]  # int32 scalar: updates done


def hft(
    seed: int, every: int, *, roles: Mapping[str, str] = ROLES
) -> optax.GradientTransformationExtraArgs:
    """Half Fine-Tuning: keeps the gradient of a random half of the matrices, round by round.

    In each transformer layer, 2 of the 4 attention matrices and half of the norms are trained; of
    the 3 feed-forward matrices, 2 in a random half of the layers and 1 in the others. Embeddings
    and head are always trained. Every `every` updates a new half is drawn. The gradient of all
    else is zero; old momentum and weight decay still move what is not chosen, which `train_only`
    of the optimizer, with the same `hft_choice`, prevents.

    What the paper leaves open is settled so: a half is rounded up, so that of an odd number L of
    layers (L + 1) / 2 train 2 feed-forward matrices. Norms are halved layer by layer, query and
    key norms among them, and the final norm is always trained: of the 2 L + 1 norms of a Llama
    L + 1 are. A bias goes with its matrix. A tied head is the embeddings.

    Args:
      seed: of all draws.
      every: updates a round; the paper's round is a whole run, or a stage of several.
      roles: what each path is, as in `ROLES`.

    Returns:
      The transformation; its state is a `ChoiceState`.

    Raises:
      ValueError: at the first sight of the parameters or gradients, naming every path that is of
        no role and every member that a layer lacks; if `every` is less than 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from gmt_jax import hft
      >>> transformation = hft(seed=0, every=100)
      >>> ones = jnp.ones((4, 2, 2))  # Four layers.
      >>> gradient = {"layers": {"mlp": {"gate": ones, "up": ones, "down": ones}}}
      >>> kept, _ = transformation.update(gradient, transformation.init(gradient))
      >>> for name, g in kept["layers"]["mlp"].items():
      ...     print(name, g[:, 0, 0])
      down [0. 1. 1. 0.]
      gate [1. 1. 0. 1.]
      up [1. 0. 0. 0.]

    References:
      Hui et al., `HFT: Half Fine-Tuning for Large Language Models
      <https://arxiv.org/abs/2404.18466>`_, 2024.
    """
    _check_positive(every=every)
    return _gradient_of(lambda tree: hft_choice(tree, seed, every, roles=roles))


def lisa(
    layers: int, seed: int, every: int, *, roles: Mapping[str, str] = ROLES
) -> optax.GradientTransformationExtraArgs:
    """Layerwise sampling: keeps the gradient of a few random layers, round by round.

    Of the transformer layers `layers` are trained, each of them as likely as another; every `every`
    updates they are drawn anew. Embeddings, head and final norm belong to no layer and are always
    trained. The gradient of all else is zero, as in `hft`.

    Args:
      layers: how many layers are trained in a round.
      seed: of all draws.
      every: updates a round.
      roles: what each path is, as in `ROLES`.

    Returns:
      The transformation; its state is a `ChoiceState`.

    Raises:
      ValueError: at the first sight of the parameters or gradients, naming every path that is of
        no role, or if there are fewer layers; if `layers` or `every` is less than 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from gmt_jax import lisa
      >>> transformation = lisa(layers=2, seed=0, every=20)
      >>> gradient = {"layers": {"attention_norm": jnp.ones((6, 2))}}  # Six layers.
      >>> kept, _ = transformation.update(gradient, transformation.init(gradient))
      >>> print(kept["layers"]["attention_norm"][:, 0])
      [0. 1. 0. 1. 0. 0.]

    References:
      Pan et al., `LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model
      Fine-Tuning <https://arxiv.org/abs/2403.17919>`_, 2024.
    """
    _check_positive(every=every, layers=layers)
    return _gradient_of(lambda tree: lisa_choice(tree, layers, seed, every, roles=roles))


def hft_choice(params: Any, seed: int, every: int, *, roles: Mapping[str, str] = ROLES) -> Choice:
    """What `hft` trains of a tree of arrays or their shapes, as a function of the count."""
    model = read_model(params, roles)

    def choice(count: jax.Array | int) -> Any:
        sizes = tuple(len(members) for members in model.groups.values())
        halves = _draw_halves(_round_key(seed, count, every), model.layers, sizes)
        chosen: dict[str, jax.Array] = {}
        for members, half in zip(model.groups.values(), halves, strict=True):
            chosen |= zip(members, half, strict=True)
        return model.masks(chosen)

    return choice


def lisa_choice(
    params: Any, layers: int, seed: int, every: int, *, roles: Mapping[str, str] = ROLES
) -> Choice:
    """What `lisa` trains of a tree of arrays or their shapes, as a function of the count."""
    model = read_model(params, roles)
    if isinstance(layers, int) and layers > model.layers:
        raise ValueError(f"cannot train {layers} of {model.layers} layers")

    def choice(count: jax.Array | int) -> Any:
        chosen = _draw_layers(_round_key(seed, count, every), model.layers, layers)
        members = [role for roles in model.groups.values() for role in roles]
        return model.masks(dict.fromkeys(members, chosen))

    return choice


def keep_chosen(updates: Any, masks: Any) -> Any:
    """The updates, with zeros where the masks that a `Choice` gave are False."""

    return jax.tree.map(lambda update, mask: jnp.where(mask, update, 0), updates, masks)


def _gradient_of(make: Callable[[Any], Choice]) -> optax.GradientTransformationExtraArgs:
    def init_fn(params: optax.Params) -> ChoiceState:
        if jax.tree.leaves(params):
            make(params)  # Refuses what it does not know before anything is trained.
        return ChoiceState(jnp.zeros((), jnp.int32))

    def update_fn(
        updates: optax.Updates,
        state: ChoiceState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ChoiceState]:
        del params, extra_args
        kept = keep_chosen(updates, make(updates)(state.count))
        return kept, ChoiceState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _round_key(seed: int, count: jax.Array | int, every: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed), count // every)


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
