"""The parameter names of other projects: their roles, and the masks of HFT and LISA on their trees.

Each table gives a scheme's name for a parameter of this project, with `{}` for the layer's number;
a name without one, of a parameter in the layers, is of layers that are stacked along `LAYER_AXIS`.
"""

import re
from typing import Any

import jax
import numpy as np
import pytest

from gmt_jax.param_roles import read_model
from gmt_jax.structured import hft_schedule, lisa_schedule

ATTENTION = ("q", "k", "v", "out")
MLP = ("gate", "up", "down")
LLAMA_NORMS = ("input_layernorm", "post_attention_layernorm")


def scheme(
    outside: tuple[str, str, str], attention: list[str], mlp: list[str], norms: list[str]
) -> dict[str, str]:
    """From this project's paths to a scheme's: embeddings, final norm and head are outside."""
    ours = ["embed", "norm/weight", "head"]
    ours += [f"layers/attention/{name}/weight" for name in ATTENTION]
    ours += [f"layers/mlp/{name}/weight" for name in MLP]
    ours += ["layers/attention_norm/weight", "layers/mlp_norm/weight"]
    return dict(zip(ours, [*outside, *attention, *mlp, *norms], strict=True))


def projections(pattern: str, names: str) -> list[str]:
    return [pattern.replace("*", name) for name in names.split()]


QKVO, GATE_UP_DOWN = "q_proj k_proj v_proj o_proj", "gate_proj up_proj down_proj"
SCHEMES = {
    "tunix": scheme(
        ("embedder/input_embedding", "final_norm/w", "lm_head/w"),
        projections("layers/{}/attn/*/w", QKVO),
        projections("layers/{}/mlp/*/kernel", GATE_UP_DOWN),
        [f"layers/{{}}/{norm}/w" for norm in LLAMA_NORMS],
    ),
    "maxtext": scheme(
        (
            "params/token_embedder/embedding",
            "params/decoder/decoder_norm/scale",
            "params/decoder/logits_dense/kernel",
        ),
        projections("params/decoder/layers/self_attention/*/kernel", "query key value out"),
        projections("params/decoder/layers/mlp/*/kernel", "wi_0 wi_1 wo"),
        projections("params/decoder/layers/*_self_attention_layer_norm/scale", "pre post"),
    ),
    "maxtext, unscanned": scheme(
        ("token_embedder/embedding", "decoder/decoder_norm/scale", "decoder/logits_dense/kernel"),
        projections("decoder/layers_{}/self_attention/*/kernel", "query key value out"),
        projections("decoder/layers_{}/mlp/*/kernel", "wi_0 wi_1 wo"),
        projections("decoder/layers_{}/*_norm/scale", "pre_self_attention pre_ffw"),
    ),
    "easydel": scheme(
        ("model/embed_tokens/embedding", "model/norm/kernel", "lm_head/kernel"),
        projections("model/layers/{}/self_attn/*/kernel", QKVO),
        projections("model/layers/{}/mlp/*/kernel", GATE_UP_DOWN),
        [f"model/layers/{{}}/{norm}/kernel" for norm in LLAMA_NORMS],
    ),
    "levanter": scheme(
        (
            "embeddings/token_embeddings/weight/0",
            "transformer/norm/weight/0",
            "lm_head/weight/0",
        ),
        projections("transformer/layers/stacked/self_attn/*/weight/0", QKVO),
        projections("transformer/layers/stacked/mlp/*/weight/0", GATE_UP_DOWN),
        [f"transformer/layers/stacked/{norm}/weight/0" for norm in LLAMA_NORMS],
    ),
    "levanter, unstacked": scheme(
        (
            "embeddings/token_embeddings/weight/0",
            "transformer/norm/weight/0",
            "lm_head/weight/0",
        ),
        projections("transformer/layers/blocks/{}/self_attn/*/weight/0", QKVO),
        projections("transformer/layers/blocks/{}/mlp/*/weight/0", GATE_UP_DOWN),
        [f"transformer/layers/blocks/{{}}/{norm}/weight/0" for norm in LLAMA_NORMS],
    ),
    "transformers, flax": scheme(
        ("params/model/embed_tokens/embedding", "params/model/norm/weight", "lm_head/kernel"),
        projections("params/model/layers/{}/self_attn/*/kernel", QKVO),
        projections("params/model/layers/{}/mlp/*/kernel", GATE_UP_DOWN),
        [f"params/model/layers/{{}}/{norm}/weight" for norm in LLAMA_NORMS],
    ),
    "linen modules": scheme(
        ("params/embed/embedding", "params/final_norm/scale", "params/lm_head/kernel"),
        projections("params/layers_{}/attention/*/kernel", "query key value out"),
        projections("params/layers_{}/mlp/*/kernel", GATE_UP_DOWN),
        projections("params/layers_{}/*/scale", "attention_norm mlp_norm"),
    ),
    "easylm": scheme(
        ("transformer/wte/embedding", "transformer/ln_f/kernel", "lm_head/kernel"),
        projections("transformer/h/{}/attention/*/kernel", "wq wk wv wo"),
        projections("transformer/h/{}/feed_forward/*/kernel", "w1 w3 w2"),
        projections("transformer/h/{}/*/kernel", "attention_norm ffn_norm"),
    ),
}
LAYER_AXIS = {"maxtext": 1}
NUM_LAYERS = 4


def ours() -> dict[str, jax.ShapeDtypeStruct]:
    """This project's tree, whose layers are stacked along the first axis."""
    paths = SCHEMES["tunix"]
    return {
        path: jax.ShapeDtypeStruct((NUM_LAYERS, 2, 3) if "layers" in path else (2, 3), "f4")
        for path in paths
    }


def theirs(name: str) -> dict[str, jax.ShapeDtypeStruct]:
    tree = {}
    for path, other in SCHEMES[name].items():
        shape = [2, 3]
        if "layers/" in path and "{}" not in other:
            shape.insert(LAYER_AXIS.get(name, 0), NUM_LAYERS)
        for layer in range(NUM_LAYERS if "{}" in other else 1):
            tree[other.format(layer)] = jax.ShapeDtypeStruct(tuple(shape), "f4")
    return tree


@pytest.mark.parametrize("name", SCHEMES)
def test_each_name_has_the_role_of_ours(name: str) -> None:
    params, axis = theirs(name), LAYER_AXIS.get(name, 0)
    model = read_model(params, layer_axis=axis)
    reference = read_model(ours())
    roles = dict(zip(sorted(params), model.params, strict=True))
    expected = dict(zip(sorted(ours()), reference.params, strict=True))
    for path, other in SCHEMES[name].items():
        for layer in range(NUM_LAYERS if "{}" in other else 1):
            found = roles[other.format(layer)]
            assert found.role == expected[path].role, other
            assert found.layer == (layer if "{}" in other else None), other
    assert (model.num_layers, model.groups) == (NUM_LAYERS, reference.groups)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("kind", ["hft", "lisa"])
def test_the_same_layers_are_trained_under_each_scheme(kind: str, name: str) -> None:
    def masks(tree: Any, axis: int) -> dict[str, np.ndarray]:
        if kind == "hft":
            schedule = hft_schedule(tree, 0, 7, layer_axis=axis)
        else:
            schedule = lisa_schedule(tree, 2, 0, 7, layer_axis=axis)
        return jax.tree.map(np.asarray, schedule(9))

    axis = LAYER_AXIS.get(name, 0)
    reference, found = masks(ours(), 0), masks(theirs(name), axis)
    shapes = theirs(name)
    for path, other in SCHEMES[name].items():
        expected = reference[path].reshape(-1)
        if "{}" in other:
            assert [bool(found[other.format(i)]) for i in range(NUM_LAYERS)] == expected.tolist()
        else:
            mask = found[other]
            np.broadcast_to(mask, shapes[other].shape)
            assert mask.size == 1 or mask.shape[axis] == NUM_LAYERS
            assert mask.reshape(-1).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("layers/{}/attn/q_bias", "attention.q"),  # Tunix, Qwen 2
        ("layers/{}/attn/v_proj/w/value", "attention.v"),  # in a Flax box
        ("layers/{}/attn/value/value", "attention.v"),
        ("decoder/layers/self_attention/value/kernel", "attention.v"),
        ("decoder/layers/self_attention/query_norm/scale", "norm.q"),
        ("layers/{}/attn/_key_norm/scale", "norm.k"),  # Tunix, Gemma 3
        ("layers/{}/pre_attention_norm/scale", "norm.attention"),
        ("layers/{}/post_attention_norm/scale", "norm.behind_attention"),
        ("layers/{}/pre_ffw_norm/scale", "norm.mlp"),
        ("layers/{}/post_ffw_norm/scale", "norm.behind_mlp"),
        ("model/layers/{}/pre_feedforward_layernorm/kernel", "norm.pre_feedforward"),
        ("transformer/h/{}/attn/q_proj/kernel", "attention.q"),  # GPT-J
        ("transformer/h/{}/attn/attention/out_proj/kernel", "attention.out"),  # GPT-Neo
        ("transformer/h/{}/mlp/fc_in/bias", "ungated_mlp.up"),
        ("transformer/h/{}/ln_1/scale", "norm.attention"),
        ("transformer/wpe/embedding", "position_embedding"),
        ("decoder/position_embedder/embedding", "position_embedding"),
    ],
)
def test_names_of_single_models_are_known(path: str, role: str) -> None:
    other = {"h/{}/mlp/fc_out/kernel"} if role == "ungated_mlp.up" else set()
    names = {name.format(layer) for name in {path, *other} for layer in range(NUM_LAYERS)}
    tree = theirs("tunix") | dict.fromkeys(names, jax.ShapeDtypeStruct((NUM_LAYERS, 2), "f4"))
    params = dict(zip(sorted(tree), read_model(tree).params, strict=True))
    assert params[path.format(2)].role == role


@pytest.mark.parametrize(
    "path",
    [
        "decoder/layers/layers_0/self_attention/query/kernel",  # MaxText: scanned blocks
        "decoder/layers/self_attention_local/query/kernel",
        "decoder/layers/MoeBlock_0/wi_0",
        "layers/0/attn/kv_einsum/w",  # Gemma: two matrices in one
        "layers/0/mlp/experts/0/gate_proj/kernel",
        "vision_encoder/layers/0/attn/q_proj/kernel",
        "vision_tower/embeddings/wte/weight",
    ],
)
def test_what_has_no_one_role_is_refused(path: str) -> None:
    tree = theirs("tunix") | {path: jax.ShapeDtypeStruct((4, 2, 3), "f4")}
    with pytest.raises(ValueError, match="no known role: ") as caught:
        read_model(tree)
    assert re.sub(r"(?<=[/_])0", "*", path) in str(caught.value)


def test_another_layer_axis_than_that_of_the_tree_is_refused() -> None:
    tree = theirs("maxtext")
    tree["params/decoder/layers/mlp/wo/kernel"] = jax.ShapeDtypeStruct((5, NUM_LAYERS, 2), "f4")
    assert read_model(tree, layer_axis=np.int64(1)).num_layers == NUM_LAYERS
    message = r"found 2 and 5 layers along axis 0 \(layer_axis is the axis of stacked layers\)"
    with pytest.raises(ValueError, match=message):
        read_model(tree)
