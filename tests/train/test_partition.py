"""Models of other libraries as trees of their trained arrays, and back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from train.errors import UserError
from train.partition import partition, refuse_changes


class Net(nnx.Module):
    """Two layers in a list, with running statistics and dropout."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return self.dropout(self.norm(x))


@jax.tree_util.register_pytree_with_keys_class
class Module:
    """A tree with leaves that are no arrays, as Equinox's modules are."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def tree_flatten_with_keys(self) -> Any:
        keys = [jax.tree_util.GetAttrKey(name) for name in self.fields]
        return list(zip(keys, self.fields.values(), strict=True)), tuple(self.fields)

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], leaves: Any) -> "Module":
        return cls(**dict(zip(names, leaves, strict=True)))


def test_every_param_of_an_nnx_module_is_trained() -> None:
    model = Net()
    params, join = partition(model)
    assert set(params) == {"layers", "norm"}
    assert set(params["layers"]) == {0, 1}
    doubled = join(jax.tree.map(lambda x: 2 * x, params))
    np.testing.assert_array_equal(doubled.layers[1].kernel[...], 2 * model.layers[1].kernel[...])
    assert doubled.norm.var[...].shape == (2,)


def test_a_variable_that_the_loss_changes_is_refused() -> None:
    params, join = partition(Net())

    def loss(params: Any) -> Any:
        with refuse_changes():
            return jnp.sum(join(params)(jnp.ones((1, 2))))

    with pytest.raises(UserError, match=r"Cannot mutate BatchStat.*call its eval\(\)"):
        jax.eval_shape(loss, params)


def test_every_array_of_floats_of_another_tree_is_trained() -> None:
    model = Module(w=jnp.ones(2), ids=jnp.arange(3), rate=0.5, act=jnp.tanh, bias=None)
    params, join = partition(model)
    assert [leaf.shape for leaf in jax.tree.leaves(params)] == [(2,)]
    joined = join(jax.tree.map(lambda x: x + 1, params))
    assert (joined.fields["rate"], joined.fields["act"]) == (0.5, jnp.tanh)
    assert joined.fields["bias"] is None
    assert joined.fields["w"].tolist() == [2, 2]
    assert joined.fields["ids"] is model.fields["ids"]


def test_a_tree_of_floats_alone_is_itself() -> None:
    tree = {"a": np.ones(2, np.float32), "b": [jax.ShapeDtypeStruct((3,), jnp.bfloat16)]}
    params, join = partition(tree)
    assert params is tree
    assert join(params) is tree


def test_a_shape_that_is_not_trained_is_refused() -> None:
    with pytest.raises(UserError, match="ids is not trained"):
        partition({"ids": jax.ShapeDtypeStruct((3,), jnp.int32), "w": jnp.ones(2)})
