"""Low-rank adapters: what layers compute with them, how they begin and where they are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from train.model import (
    ComputeOptions,
    LoraParams,
    ModelConfig,
    abstract_params,
    decode,
    forward,
    init_cache,
    logical_axes,
    logits,
    unstack,
)
from train.model.lora import abstract_lora, attach, lora_shardings, merged, start_values
from train.sharding import make_mesh, param_shardings

TOKENS = np.random.default_rng(0).integers(0, 96, (2, 9))
TARGETS = ["layers/attention/q/weight", "layers/attention/out/weight", "layers/mlp/down/weight"]


@pytest.fixture
def model(family: Any) -> ModelConfig:
    """A decoder with biases."""
    return ModelConfig.from_hf(family("llama-biases"), "config.json")


@pytest.fixture
def params(model: ModelConfig, random_params: Any) -> LoraParams:
    """Its parameters, with adapters of which no factor is zero."""
    weights = random_params(model)
    values = start_values(weights, TARGETS, 3, seed=0)
    return LoraParams(weights, jax.tree.map(lambda x: x + 0.1, values), 1.5)


def test_factors_begin_as_those_of_peft(model: ModelConfig) -> None:
    weights = abstract_params(model)
    values = start_values(weights, TARGETS, 4, seed=0)
    assert len(jax.tree.leaves(values)) == 2 * len(TARGETS)
    down = values["layers"]["mlp"]["down"]["weight"]
    assert down["a"].shape == (3, 4, 48)
    assert down["b"].shape == (3, 32, 4)
    assert not down["b"].any()
    bound = 48**-0.5
    assert 0.9 * bound < down["a"].max() <= bound
    assert -bound <= down["a"].min() < -0.9 * bound
    others = start_values(weights, TARGETS, 4, seed=1)["layers"]["mlp"]["down"]["weight"]
    assert (others["a"] != down["a"]).any()
    abstract = abstract_lora(weights, TARGETS, 4, 2.0)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), abstract.values, values)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_layers_compute_with_the_factors_what_they_do_with_merged_weights(
    model: ModelConfig, params: LoraParams, remat: Any
) -> None:
    options = ComputeOptions(remat=remat)

    def loss(values: Any, *, is_merged: bool) -> jax.Array:
        adapted = LoraParams(params.weights, values, params.scale)
        tree = merged(adapted, "float32") if is_merged else attach(adapted)
        return jnp.mean(jnp.square(forward(model, tree, jnp.asarray(TOKENS), options)))

    results = [
        jax.value_and_grad(loss)(params.values, is_merged=is_merged) for is_merged in (True, False)
    ]
    (expected, expected_grads), (found, grads) = results
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected_grads))
    jax.tree.map(
        lambda g, e: np.testing.assert_allclose(g, e, atol=1e-4 * largest), grads, expected_grads
    )


@pytest.mark.parametrize("stacked", [True, False])
def test_decoding_with_factors_equals_the_whole_text_at_once(
    model: ModelConfig, params: LoraParams, stacked: bool
) -> None:
    tree = attach(params)
    cache = init_cache(model, *TOKENS.shape)
    expected = forward(model, tree, jnp.asarray(TOKENS))
    if not stacked:
        tree |= {"layers": unstack(tree["layers"])}
        cache = cache._replace(layers=unstack(cache.layers))
    for position in range(TOKENS.shape[1]):
        token = jnp.asarray(TOKENS[:, position : position + 1])
        hidden, cache = decode(model, tree, token, cache)
        found = logits(model, tree, hidden)[:, 0]
        np.testing.assert_allclose(found, expected[:, position], atol=1e-4)


def test_factors_are_split_as_their_side_of_the_weight(model: ModelConfig) -> None:
    weights = abstract_params(model)
    mesh = make_mesh(fsdp=4, tensor=2)
    axes = logical_axes(model)
    shardings = param_shardings(mesh, weights, axes)

    def specs(rank: int, name: str) -> dict[str, PartitionSpec]:
        params = abstract_lora(weights, TARGETS, rank, 1.0)
        tree = lora_shardings(mesh, params, shardings, axes).values["layers"]["attention"]
        return {key: sharding.spec for key, sharding in tree[name]["weight"].items()}

    embed, heads = ("fsdp", "context"), ("tensor",)
    # Of q [heads, embed] and out [embed, heads]: the rank is split where no side is along embed.
    assert specs(8, "q") == {
        "a": PartitionSpec(None, None, embed),
        "b": PartitionSpec(None, heads, embed),
    }
    assert specs(8, "out") == {
        "a": PartitionSpec(None, embed, heads),
        "b": PartitionSpec(None, embed, None),
    }
    assert specs(6, "q")["b"] == PartitionSpec(None, heads, None)
