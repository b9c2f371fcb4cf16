"""Roles of parameters, from their paths; unknown paths are refused by name."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from gmt_jax.param_roles import read_model

# Hugging Face's name of each stacked parameter; a name without a number is outside the layers.
NAMES = {
    "embed": "model.embed_tokens.weight",
    "norm/weight": "model.norm.weight",
    "head": "lm_head.weight",
    "layers/attention_norm/weight": "model.layers.{}.input_layernorm.weight",
    "layers/mlp_norm/weight": "model.layers.{}.post_attention_layernorm.weight",
    **{
        f"layers/attention/{part}/weight": f"model.layers.{{}}.self_attn.{name}.weight"
        for part, name in [("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "o_proj")]
    },
    **{
        f"layers/mlp/{part}/weight": f"model.layers.{{}}.mlp.{part}_proj.weight"
        for part in ("gate", "up", "down")
    },
}
BIASES = {
    path.replace("weight", "bias"): name.replace("weight", "bias")
    for path, name in NAMES.items()
    if "attention/" in path or "mlp/" in path
}
QK_NORMS = {
    f"layers/attention/{part}/weight": f"model.layers.{{}}.self_attn.{part}.weight"
    for part in ("q_norm", "k_norm")
}
FAMILIES = {
    "llama": NAMES,
    "biases": NAMES | BIASES,
    "tied": {path: name for path, name in NAMES.items() if path != "head"},
    "qwen3": NAMES | QK_NORMS,
}


def stacked(names: dict[str, str], num_layers: int = 3) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a model with stacked layers."""
    return {
        path: jax.ShapeDtypeStruct((num_layers, 2, 2) if "layers" in path else (2, 2), "f4")
        for path in names
    }


def by_layer(names: dict[str, str], num_layers: int = 3) -> dict[str, jax.ShapeDtypeStruct]:
    """The same model under Hugging Face's names, with one path for each layer."""
    return {
        name.format(layer): jax.ShapeDtypeStruct((2, 2), "f4")
        for name in names.values()
        for layer in range(num_layers if "{}" in name else 1)
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_read_the_same_stacked_and_by_layer(family: str) -> None:
    ours, theirs = (read_model(tree(FAMILIES[family])) for tree in (stacked, by_layer))
    assert ours.num_layers == theirs.num_layers == 3
    assert ours.groups == theirs.groups
    assert ours.groups["attention"] == [f"attention.{part}" for part in ("q", "k", "v", "out")]
    assert ours.groups["mlp"] == ["mlp.gate", "mlp.up", "mlp.down"]
    assert len(ours.groups["norm"]) == (4 if family == "qwen3" else 2)


def test_a_tied_head_is_the_embeddings() -> None:
    params = read_model(stacked(FAMILIES["tied"])).params
    assert {p.role for p in params if "." not in p.role} == {"embedding", "final_norm"}


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
def test_a_path_gives_role_and_layer(path: str, role: str, layer: int | None) -> None:
    # Beside the rest of a model, so that only the path is tested.
    tree: dict[str, Any] = by_layer(FAMILIES["qwen3"], 4) | {path: jnp.ones((4, 2, 2))}
    param = dict(zip(sorted(tree), read_model(tree).params, strict=True))[path]
    assert (param.role, param.layer) == (role, layer)


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
    name = path.replace(".", "/").replace("/0/", "/*/")
    with pytest.raises(ValueError, match="these parameters have no known role: ") as caught:
        read_model({**by_layer(NAMES), path: jnp.ones((3, 2))})
    assert f": {name};" in str(caught.value)


def test_unknown_paths_that_differ_in_the_layer_are_reported_once() -> None:
    tree = {f"h.{layer}.{name}": jnp.ones(2) for layer in range(12) for name in ("a", "b")}
    with pytest.raises(ValueError, match=r"no known role: h/\*/a, h/\*/b; add"):
        read_model(tree)


def test_a_tree_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="agree on the number of layers; found no layers"):
        read_model({"embed": jnp.ones((4, 2)), "head": jnp.ones((4, 2))})


@pytest.mark.parametrize("other", ["layers/mlp_norm", "layers/5/mlp_norm"])
def test_two_numbers_of_layers_are_refused(other: str) -> None:
    with pytest.raises(ValueError, match="found 3 and 6 layers"):
        read_model({"layers/attention_norm": jnp.ones((3, 2)), other: jnp.ones((6, 2))})


def test_a_layer_that_lacks_a_matrix_is_named() -> None:
    tree = by_layer(NAMES)
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
