"""States of optimizers pass through the checkpoints of Equinox and Tunix (`make examples`)."""

import equinox as eqx
import equinox_module
import jax
import numpy as np
import optax
import tunix_sft
from flax import nnx

from gmt_jax import hft, lisa


def assert_equal(old, new):
    assert jax.tree.structure(old) == jax.tree.structure(new)
    for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
        np.testing.assert_array_equal(a, b)


def test_equinox(tmp_path):
    _, state = equinox_module.main()
    eqx.tree_serialise_leaves(tmp_path / "state.eqx", state)
    assert_equal(state, eqx.tree_deserialise_leaves(tmp_path / "state.eqx", state))


def test_tunix_restores_the_state_of_its_optimizer(tmp_path):
    trained = tunix_sft.make_trainer(str(tmp_path))
    tokens = np.arange(64).reshape(4, 16)
    trained.train([tunix_sft.TrainingInput(tokens, np.ones_like(tokens))] * 5)
    restored = tunix_sft.make_trainer(str(tmp_path))
    states = [nnx.as_pure(trainer.optimizer.opt_state) for trainer in (trained, restored)]
    assert optax.tree.get(states[0][0], "count") == 5
    assert_equal(*states)


def test_the_roles_of_tunix_models_are_known():
    model = tunix_sft.Llama3(tunix_sft.CONFIG, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    for optimizer in (
        hft(optax.adamw(1e-3), key=0, every=10),
        lisa(optax.adamw(1e-3), num_layers=1, key=0, every=10),
    ):
        optimizer.init(params)
        optimizer.init(nnx.as_pure(params))
