"""A model as the tree of its trained arrays, and back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.errors import TraceContextError

from gmt_jax.compact import CompactParams

from .errors import UserError
from .model.lora import LoraParams
from .sharding import path_name

Join = Callable[[Any], Any]


def partition(model: Any) -> tuple[Any, Join]:
    """Splits a model into the arrays that are trained and a function that puts them back.

    Of a Flax NNX module, every `nnx.Param` is trained; of any other tree, such as nested dicts or
    an Equinox module, every array of floats. What is not trained is part of the function.
    `CompactParams` and `LoraParams` stay as they are.

    Args:
      model: a module or a tree, of arrays or of their ShapeDtypeStructs.

    Returns:
      A nested dict for an NNX module, and for another tree one like it, with None for what is not
      trained; and the function from such a tree to the model.

    Raises:
      UserError: if the model has ShapeDtypeStructs that are not trained.
    """
    if isinstance(model, CompactParams | LoraParams):
        return model, lambda params: params
    if isinstance(model, nnx.Module):
        parts: Any = nnx.split(model, nnx.Param, ...)
        graphdef, trained, rest = parts
        _refuse_abstract(rest)
        return nnx.to_pure_dict(trained), lambda params: nnx.merge(graphdef, params, rest)
    _refuse_abstract(jax.tree.map(lambda leaf: None if _is_trained(leaf) else leaf, model))
    leaves, treedef = jax.tree.flatten(model, is_leaf=_is_none)
    fixed = [None if _is_trained(leaf) else leaf for leaf in leaves]
    if all(leaf is None for leaf in fixed):
        return model, lambda params: params

    def join(params: Any) -> Any:
        trained = jax.tree.leaves(params, is_leaf=_is_none)
        pairs = zip(trained, fixed, strict=True)
        joined = [other if leaf is None else leaf for leaf, other in pairs]
        return jax.tree.unflatten(treedef, joined)

    trained = [leaf if _is_trained(leaf) else None for leaf in leaves]
    return jax.tree.unflatten(treedef, trained), join


@contextmanager
def refuse_changes() -> Iterator[None]:
    """Turns NNX's error for a variable that is changed in a loss into a UserError."""
    try:
        yield
    except TraceContextError as error:
        reason = str(error).split(" from")[0]
        raise UserError(
            f"the loss changes what is not trained ({reason}): fit trains every nnx.Param and "
            "changes no other variable; call its eval(), or pass nnx.Rngs made from a key in the "
            "batch to the layers that draw"
        ) from error


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _is_trained(leaf: Any) -> bool:
    is_array = isinstance(leaf, (jax.Array, np.ndarray, jax.ShapeDtypeStruct))
    return is_array and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _refuse_abstract(fixed: Any) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(fixed)[0]:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            name = path_name(path)
            raise UserError(f"{name} is not trained: give its array, not its shape alone")
