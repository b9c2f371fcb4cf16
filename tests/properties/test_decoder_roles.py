"""Roles and structured masks of the program's own models, under both kinds of names."""

from typing import Any

import jax
import numpy as np
import pytest

from gmt_jax.param_roles import read_model
from gmt_jax.structured import hft_schedule, lisa_schedule
from train.model import ModelConfig, abstract_params
from train.model.param_table import PARAM_SPECS

SPECS = {spec.path: spec for spec in PARAM_SPECS}
SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
FAMILIES = {
    "llama": LLAMA,
    "biases": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "tied": LLAMA | {"tie_word_embeddings": True},
    "mistral": LLAMA | {"model_type": "mistral", "num_key_value_heads": 2},
    "qwen2": LLAMA | {"model_type": "qwen2", "num_key_value_heads": 2},
    "qwen3": LLAMA | {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8},
}
SCHEDULES = {
    "hft": lambda tree: hft_schedule(tree, 0, 7),
    "lisa": lambda tree: lisa_schedule(tree, 2, 0, 7),
}


def params_of(config: dict[str, Any]) -> Any:
    return abstract_params(ModelConfig.from_hf(config))


def flat(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def hugging_face(stacked: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The same tree under Hugging Face's names, with one path for each layer."""
    return {
        SPECS[path].name.format(layer): jax.ShapeDtypeStruct(
            leaf.shape[SPECS[path].stacked :], leaf.dtype
        )
        for path, leaf in flat(stacked).items()
        for layer in range(leaf.shape[0] if SPECS[path].stacked else 1)
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_model_of_the_program_is_read_the_same_stacked_and_by_layer(family: str) -> None:
    stacked = params_of(FAMILIES[family])
    ours, theirs = read_model(stacked), read_model(hugging_face(stacked))
    assert ours.num_layers == theirs.num_layers == 3
    assert ours.groups == theirs.groups
    assert ours.groups["attention"] == [f"attention.{part}" for part in ("q", "k", "v", "out")]
    assert ours.groups["mlp"] == ["mlp.gate", "mlp.up", "mlp.down"]
    assert len(ours.groups["norm"]) == (4 if family == "qwen3" else 2)


def test_a_tied_head_is_the_embeddings() -> None:
    params = read_model(params_of(FAMILIES["tied"])).params
    assert {p.role for p in params if "." not in p.role} == {"embedding", "final_norm"}


@pytest.mark.parametrize("family", ["biases", "qwen3"])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_stacked_layers_and_a_path_for_each_layer_draw_the_same(kind: str, family: str) -> None:
    stacked = params_of(FAMILIES[family])
    ours, theirs = (
        jax.tree.map(np.asarray, flat(SCHEDULES[kind](tree)(9)))
        for tree in (stacked, hugging_face(stacked))
    )
    for path, mask in ours.items():
        spec = SPECS[path]
        for layer in range(3 if spec.stacked else 1):
            value = theirs[spec.name.format(layer)]
            assert value.shape == ()
            assert value == (mask.ravel()[layer] if spec.stacked else mask)


def test_hft_on_smollm2_trains_so_many_parameters() -> None:
    tree = params_of(SMOLLM2)
    masks, sizes = flat(hft_schedule(tree, 0, every=100)(0)), flat(tree)
    trained = sum(int(m.sum()) * sizes[path].size // m.size for path, m in masks.items())
    outside = 49152 * 576 + 576
    # 2 of 4 attention matrices of two sizes; 45 of 90 feed-forward ones; 30 of 60 norms.
    in_layers = (12 + 15) * 192 * 576 + (16 + 17) * 576 * 576 + 45 * 576 * 1536 + 30 * 576
    assert trained == outside + in_layers == 82_077_120
