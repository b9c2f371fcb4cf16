"""The roles of parameters, told by their paths; what is not known is refused by name."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from gmt_jax.param_roles import read_model
from train.model import ModelConfig, abstract_params
from train.model.param_table import PARAM_SPECS

CONFIG = {
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
    "llama": CONFIG,
    "biases": CONFIG | {"attention_bias": True, "mlp_bias": True},
    "tied": CONFIG | {"tie_word_embeddings": True},
    "mistral": CONFIG | {"model_type": "mistral", "num_key_value_heads": 2},
    "qwen2": CONFIG | {"model_type": "qwen2", "num_key_value_heads": 2},
    "qwen3": CONFIG | {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8},
}


def hugging_face(stacked: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The same tree under Hugging Face's names, a path a layer."""
    names = {tensor.path: tensor for tensor in PARAM_SPECS}
    tree = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(stacked):
        row = names[jax.tree_util.keystr(path, simple=True, separator="/")]
        for layer in range(leaf.shape[0] if row.stacked else 1):
            shape = leaf.shape[1:] if row.stacked else leaf.shape
            tree[row.name.format(layer)] = jax.ShapeDtypeStruct(shape, leaf.dtype)
    return tree


@pytest.mark.parametrize("family", FAMILIES)
def test_every_model_of_the_program_is_known_stacked_and_by_layer(family: str) -> None:
    stacked = abstract_params(ModelConfig.from_hf(FAMILIES[family]))
    ours, theirs = read_model(stacked), read_model(hugging_face(stacked))
    assert ours.layers == theirs.layers == 3
    assert ours.groups == theirs.groups
    assert ours.groups["attention"] == [f"attention.{part}" for part in ("q", "k", "v", "out")]
    assert ours.groups["mlp"] == ["mlp.gate", "mlp.up", "mlp.down"]
    assert len(ours.groups["norm"]) == (4 if family == "qwen3" else 2)


def test_a_tied_head_is_the_embeddings() -> None:
    tree = abstract_params(ModelConfig.from_hf(FAMILIES["tied"]))
    assert {p.role for p in read_model(tree).places if "." not in p.role} == {
        "embedding",
        "final_norm",
    }


@pytest.mark.parametrize(
    ("path", "role", "layer"),
    [
        ("layers/3/attn/q/kernel", "attention.q", 3),
        ("params/layers_3/attn/o_proj/kernel", "attention.out", 3),
        ("model.layers.3.self_attn.q_proj.weight", "attention.q", 3),
        ("model.layers.3.self_attn.q_proj.bias", "attention.q", 3),
        ("model.layers.3.mlp.down_proj.weight", "mlp.down", 3),
        ("model.layers.3.post_attention_layernorm.weight", "norm.mlp", 3),
        ("model.layers.3.self_attn.k_norm.weight", "norm.k", 3),
        ("layers/mlp_norm/weight", "norm.mlp", None),
        ("model.norm.weight", "final_norm", None),
        ("lm_head.weight", "head", None),
        ("params/embed_tokens/embedding", "embedding", None),
    ],
)
def test_what_a_path_is(path: str, role: str, layer: int | None) -> None:
    tree: dict[str, Any] = {path: jnp.ones((4, 2, 2))}
    # The rest of a model, so that what is tested is the path alone.
    config = FAMILIES["qwen3"] | {"num_hidden_layers": 4}
    other = hugging_face(abstract_params(ModelConfig.from_hf(config)))
    places = read_model({**other, **tree}).places
    of_path = dict(zip(sorted({**other, **tree}), places, strict=True))
    assert (of_path[path].role, of_path[path].layer) == (role, layer)


@pytest.mark.parametrize(
    "path",
    [
        "transformer.h.0.attn.c_attn.weight",
        "model.layers.0.self_attn.qkv_proj.weight",
        "model.layers.0.mlp.experts.0.up_proj.weight",
        "layers/0/norm/weight",
        "layers/embed",
        "layers/attention/q/lora_a",
        "vision/patch_embed",
    ],
)
def test_an_unknown_path_is_refused_by_name(path: str) -> None:
    tree = hugging_face(abstract_params(ModelConfig.from_hf(CONFIG)))
    said = path.replace(".", "/").replace("/0/", "/*/")
    with pytest.raises(ValueError, match="the role of these parameters is not known: ") as caught:
        read_model({**tree, path: jnp.ones((3, 2))})
    assert f": {said};" in str(caught.value)


def test_unknown_paths_that_differ_in_the_layer_are_said_once() -> None:
    tree = {f"h.{layer}.{name}": jnp.ones(2) for layer in range(12) for name in ("a", "b")}
    with pytest.raises(ValueError, match=r"not known: h/\*/a, h/\*/b; say"):
        read_model(tree)


def test_a_tree_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="the parameters are of no layers"):
        read_model({"embed": jnp.ones((4, 2)), "head": jnp.ones((4, 2))})


@pytest.mark.parametrize("other", ["layers/mlp_norm", "layers/5/mlp_norm"])
def test_two_numbers_of_layers_are_refused(other: str) -> None:
    with pytest.raises(ValueError, match="are of 3 and 6 layers"):
        read_model({"layers/attention_norm": jnp.ones((3, 2)), other: jnp.ones((6, 2))})


def test_a_layer_that_lacks_a_matrix_is_named() -> None:
    tree = hugging_face(abstract_params(ModelConfig.from_hf(CONFIG)))
    del tree["model.layers.1.self_attn.v_proj.weight"]
    with pytest.raises(ValueError, match=r"lack attention\.v in layer 1$"):
        read_model(tree)


def test_a_fused_matrix_is_not_taken_for_what_it_replaces() -> None:
    tree = {f"layers/mlp/{name}": jnp.ones((2, 3)) for name in ("up", "down")}
    with pytest.raises(ValueError, match=r"lack mlp\.gate in layer 0, mlp\.gate in layer 1$"):
        read_model(tree)


def test_roles_of_another_model_are_data() -> None:
    roles = {
        "embedding": "wte",
        "block.attention": r"h/(?P<layer>\d+)/attn/.*",
        "block.mlp": r"h/(?P<layer>\d+)/mlp/.*",
    }
    parts = [f"h.{layer}.{part}.w" for layer in range(2) for part in ("attn", "mlp")]
    model = read_model({name: jnp.ones(3) for name in ["wte", *parts]}, roles)
    assert model.groups == {"block": ["block.attention", "block.mlp"]}
