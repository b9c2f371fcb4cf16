"""The cache of a batch is split over the mesh, and a state is not copied when it goes on."""

from typing import Any

import jax
import numpy as np

from train.generate import Sampling
from train.generate.programs import CHUNK, advance, prefill
from train.model import ModelConfig, abstract_params, logical_axes
from train.sharding import abstract, make_mesh, param_shardings


def test_the_cache_is_split_by_rows_and_heads(family: Any, all_devices: Any) -> None:
    config = ModelConfig.from_hf(family("llama-tied", num_hidden_layers=1))
    mesh = make_mesh(1, 2, 2, devices=all_devices[:4])
    shapes = abstract_params(config)
    params = abstract(shapes, param_shardings(mesh, shapes, logical_axes(config)))
    rows = jax.ShapeDtypeStruct((4,), np.int32)
    with jax.set_mesh(mesh):
        program = prefill.lower(
            config,
            params,
            jax.ShapeDtypeStruct((4, 32), np.int32),
            rows,
            rows,
            jax.ShapeDtypeStruct((), np.int32),
            slots=64,
            sampling=Sampling(1),
            dtype="bfloat16",
            stacked=True,
        ).compile()
    state = program.output_shardings
    keys = state.cache.layers.keys
    assert keys.shard_shape((1, 4, 2, 64, 8)) == (1, 2, 1, 64, 8)


def test_chosen_tokens_are_returned_until_all_rows_ended(family: Any, random_params: Any) -> None:
    config = ModelConfig.from_hf(family("llama-tied", num_hidden_layers=1))
    params = random_params(config)
    tokens = np.array([[0] * 30 + [1, 2], [0] * 28 + [3, 4, 5, 6]], np.int32)
    kind: Any = {"sampling": Sampling(1), "dtype": "float32"}
    lengths, numbers, stops = np.array([2, 4]), np.arange(2), np.array([-1])
    first = prefill(
        config, params, tokens, lengths, numbers, np.int32(0), slots=64, stacked=True, **kind
    )
    slot = first.cache.layers.keys.unsafe_buffer_pointer()
    ended = np.array([False, False])
    state, chosen = advance(config, params, first, ended, stops, np.int32(3), **kind)
    assert chosen.shape == (2, CHUNK)
    assert int(state.step) == 3
    assert np.all(np.asarray(chosen)[:, 3:] == 0)
    assert first.token.is_deleted()  # Donated.
    assert state.cache.layers.keys.unsafe_buffer_pointer() == slot
    state, chosen = advance(config, params, state, ~ended, stops, np.int32(3), **kind)
    assert int(state.step) == 3
    assert not np.any(chosen)
