"""The role of each parameter of a transformer, from its path.

`ROLES` has a pattern for every role in the known models, whose layers are stacked or have one
path each: under this project's names and those of Hugging Face, Tunix, MaxText, EasyDeL, levanter
and common Flax modules. A path without a role is an error, so that nothing is trained, or left
untrained, by mistake.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gmt_jax.tree_paths import expression, path_name
from gmt_jax.types import Mask, is_integer

# A parameter below its module, and the box in which haliax or Flax holds its array.
_PARAM = "(?:/(?:weight|kernel|bias|scale|embedding|w|b))?(?:/(?:0|value))?"
# Other towers than the decoder, and layers inside scanned layers, are not known.
_DECODER = r"(?!.*(?:vision|visual|audio|encoder))(?!.*layers[/_].*layers[/_])(?:.*/)?"
_OUTSIDE = r"(?!(?:.*/)?(?:layers?|blocks?|h)[/_])" + _DECODER
_LAYER = _DECODER + r"(?:layers?|blocks?|h)(?:/(?:stacked|blocks))?(?:[/_](?P<layer>\d+))?/"
_ATTENTION = _LAYER + "(?:attention|self_attention|attn|self_attn|attn/attention)/"
_MLP = _LAYER + "(?:mlp|feed_forward)/"

# Role -> pattern of the whole path, whose keys are joined by "/". A role with a dot, such as
# "group.member", is in a layer: its pattern has a group `layer` with the number of the layer, and
# matches without one where layers are stacked. The other roles are outside the layers.
ROLES: Mapping[str, str] = {
    "embedding": _OUTSIDE
    + "(?:embed|embed_tokens|embedder/input_embedding|token_embedder|token_embeddings|wte)"
    + _PARAM,
    "position_embedding": _OUTSIDE + "(?:position_embedder|position_embeddings|wpe)" + _PARAM,
    "head": _OUTSIDE + "(?:head|lm_head|logits_dense)" + _PARAM,
    "final_norm": _OUTSIDE + "(?:norm|final_norm|decoder_norm|ln_f)" + _PARAM,
    "attention.q": _ATTENTION + "(?:q|q_proj|query|q_bias|wq)" + _PARAM,
    "attention.k": _ATTENTION + "(?:k|k_proj|key|k_bias|wk)" + _PARAM,
    "attention.v": _ATTENTION + "(?:v|v_proj|value|v_bias|wv)" + _PARAM,
    "attention.out": _ATTENTION + "(?:o|out|o_proj|out_proj|wo)" + _PARAM,
    "mlp.gate": _MLP + "(?:gate|gate_proj|wi_0|w1)" + _PARAM,
    "mlp.up": _MLP + "(?:up|up_proj|wi_1|w3)" + _PARAM,
    "mlp.down": _MLP + "(?:down|down_proj|wo|w2)" + _PARAM,
    # Feed-forward layers without a gate have two matrices.
    "ungated_mlp.up": _MLP + "(?:fc_in|c_fc)" + _PARAM,
    "ungated_mlp.down": _MLP + "(?:fc_out|c_proj)" + _PARAM,
    "norm.attention": _LAYER
    + "(?:attention_norm|input_layernorm|pre_self_attention_(?:layer_)?norm|pre_attention_norm"
    + "|ln_1)"
    + _PARAM,
    "norm.mlp": _LAYER
    + "(?:mlp_norm|post_attention_layernorm|post_self_attention_layer_norm|pre_ffw_norm|ffn_norm"
    + "|ln_2)"
    + _PARAM,
    "norm.q": _ATTENTION + "(?:q_norm|_?query_norm)" + _PARAM,
    "norm.k": _ATTENTION + "(?:k_norm|_?key_norm)" + _PARAM,
    # Gemma has norms behind attention and feed-forward layer too. Hugging Face calls the one behind
    # attention what is the one in front of the feed-forward layer in other models.
    "norm.behind_attention": _LAYER + "post_(?:self_)?attention_norm" + _PARAM,
    "norm.pre_feedforward": _LAYER + "pre_feedforward_layernorm" + _PARAM,
    "norm.behind_mlp": _LAYER + "(?:post_ffw_norm|post_feedforward_layernorm)" + _PARAM,
}
# The group of which a model may lack members: few models have query and key norms.
OPTIONAL = "norm"


class ParamRole(NamedTuple):
    """The role of a parameter.

    Attributes:
      role: a key of the table of roles.
      layer: the number of its layer; None outside the layers, and for a parameter that is stacked
        over the layers.
      shape: the shape of the parameter.
    """

    role: str
    layer: int | None
    shape: tuple[int, ...]


class Model(NamedTuple):
    """What the paths of a tree of parameters say about a model.

    Attributes:
      treedef: the structure of the tree.
      params: the role of each leaf.
      num_layers: L.
      groups: the roles of each group, in the order of the table of roles.
      layer_axis: the axis along which layers are stacked.
    """

    treedef: jax.tree_util.PyTreeDef
    params: list[ParamRole]
    num_layers: int
    groups: dict[str, list[str]]
    layer_axis: int

    def mask(self, trained: Mapping[str, jax.Array]) -> Mask:
        """A tree of bools, each broadcastable to its parameter.

        Args:
          trained: for each role in the layers, the layers in which it is trained, bool [L]. All
            other roles are trained.
        """

        def mask_of(param: ParamRole) -> jax.Array:
            if param.role not in trained:
                return jnp.ones((), bool)
            if param.layer is not None:
                return trained[param.role][param.layer]
            shape = [1] * len(param.shape)
            shape[self.layer_axis] = self.num_layers
            return trained[param.role].reshape(shape)

        return jax.tree.unflatten(self.treedef, [mask_of(param) for param in self.params])


def read_model(
    params: optax.Params, roles: Mapping[str, str] = ROLES, layer_axis: int = 0
) -> Model:
    """The roles of all leaves of a tree of arrays or of their shapes.

    Args:
      params: the tree.
      roles: patterns of the paths of each role, as in `ROLES`.
      layer_axis: the axis along which layers are stacked, in every parameter without the number of
        a layer in its path.

    Raises:
      ValueError: if paths have no role, or layers lack members of a group (all of these are
        named), or if there are no layers, or parameters disagree on their number, or if
        `layer_axis` is no integer.
    """
    if not is_integer(layer_axis):
        raise ValueError(
            f"layer_axis is the axis of stacked layers, an integer; got {layer_axis!r} (under "
            "optax.inject_hyperparams, name it in static_args)"
        )
    flat, treedef = jax.tree_util.tree_flatten_with_path(params)
    found = [(path_name(path).replace(".", "/"), tuple(leaf.shape)) for path, leaf in flat]
    maybe = [_role_of(name, shape, roles) for name, shape in found]
    unknown = [name for (name, _), role in zip(found, maybe, strict=True) if role is None]
    if unknown:
        raise ValueError(
            f"these parameters have no known role: {', '.join(_without_numbers(unknown))}; "
            "add patterns for them to `roles`"
        )
    known = [role for role in maybe if role is not None]
    num_layers = _count_layers([param for param in known if "." in param.role], layer_axis)
    return Model(treedef, known, num_layers, _groups(known, num_layers, roles), layer_axis)


def _role_of(name: str, shape: tuple[int, ...], roles: Mapping[str, str]) -> ParamRole | None:
    for role, pattern in roles.items():
        if match := expression("roles", pattern).fullmatch(name):
            layer = match.groupdict().get("layer")
            return ParamRole(role, None if layer is None else int(layer), shape)
    return None


def _count_layers(params: Sequence[ParamRole], layer_axis: int) -> int:
    """L, from the numbers in paths and the layer axis of stacked parameters."""
    counts = {
        param.shape[layer_axis] if -len(param.shape) <= layer_axis < len(param.shape) else 0
        for param in params
        if param.layer is None
    }
    numbers = [param.layer for param in params if param.layer is not None]
    if numbers:
        counts.add(max(numbers) + 1)
    if len(counts) != 1 or 0 in counts:
        found = " and ".join(map(str, sorted(counts))) or "no"
        message = f"the parameters must agree on the number of layers; found {found} layers"
        if any(param.layer is None for param in params):
            message += f" along axis {layer_axis} (layer_axis is the axis of stacked layers)"
        raise ValueError(message)
    return counts.pop()


def _groups(
    params: Sequence[ParamRole], num_layers: int, roles: Mapping[str, str]
) -> dict[str, list[str]]:
    """The roles of each group in the model; each must be in every layer."""
    layers_of: dict[str, set[int]] = {}
    for param in params:
        layers = range(num_layers) if param.layer is None else [param.layer]
        layers_of.setdefault(param.role, set()).update(layers)
    present = {role.partition(".")[0] for role in layers_of if "." in role}
    groups: dict[str, list[str]] = {}
    for role in roles:
        group = role.partition(".")[0]
        if "." in role and group in present and (role in layers_of or group != OPTIONAL):
            groups.setdefault(group, []).append(role)
    missing = [
        f"{role} in layer {layer}"
        for members in groups.values()
        for role in members
        for layer in sorted(set(range(num_layers)) - layers_of.get(role, set()))
    ]
    if missing:
        raise ValueError(f"the parameters lack {', '.join(missing)}")
    return groups


def _without_numbers(names: Sequence[str]) -> list[str]:
    """The names, with "*" for numbers, so that those of different layers are one."""
    return sorted({re.sub(r"(?<=[/_])\d+(?=/|$)", "*", name) for name in names})
