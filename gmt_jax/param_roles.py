"""The role of each parameter of a transformer, from its path.

`ROLES` has a pattern for every role in the known models: in the trees of this project, whose layers
are stacked along the first axis, and in trees with one path for each layer, such as Hugging Face's
names. A path without a role is an error, so that nothing is trained, or left untrained, by mistake.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gmt_jax.tree_paths import path_name
from gmt_jax.types import Mask

_PARAM = "(?:/(?:weight|kernel|bias|scale|embedding))?"
_OUTSIDE = r"(?!.*layers[/_])(?:.*/)?"
_LAYER = r"(?:.*/)?layers(?:[/_](?P<layer>\d+))?/"
_ATTENTION = _LAYER + "(?:attention|attn|self_attn)/"

# Role -> pattern of the whole path, whose keys are joined by "/". A role with a dot, such as
# "group.member", is in a layer: its pattern has a group `layer` with the number of the layer, and
# matches without one where layers are stacked. The other roles are outside the layers.
ROLES: Mapping[str, str] = {
    "embedding": _OUTSIDE + "(?:embed|embed_tokens)" + _PARAM,
    "head": _OUTSIDE + "(?:head|lm_head)" + _PARAM,
    "final_norm": _OUTSIDE + "norm" + _PARAM,
    "attention.q": _ATTENTION + "(?:q|q_proj)" + _PARAM,
    "attention.k": _ATTENTION + "(?:k|k_proj)" + _PARAM,
    "attention.v": _ATTENTION + "(?:v|v_proj)" + _PARAM,
    "attention.out": _ATTENTION + "(?:o|out|o_proj|out_proj)" + _PARAM,
    "mlp.gate": _LAYER + "mlp/(?:gate|gate_proj)" + _PARAM,
    "mlp.up": _LAYER + "mlp/(?:up|up_proj)" + _PARAM,
    "mlp.down": _LAYER + "mlp/(?:down|down_proj)" + _PARAM,
    "norm.attention": _LAYER + "(?:attention_norm|input_layernorm)" + _PARAM,
    "norm.mlp": _LAYER + "(?:mlp_norm|post_attention_layernorm)" + _PARAM,
    "norm.q": _ATTENTION + "q_norm" + _PARAM,
    "norm.k": _ATTENTION + "k_norm" + _PARAM,
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
    """

    treedef: jax.tree_util.PyTreeDef
    params: list[ParamRole]
    num_layers: int
    groups: dict[str, list[str]]

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
            return trained[param.role].reshape(-1, *[1] * (len(param.shape) - 1))

        return jax.tree.unflatten(self.treedef, [mask_of(param) for param in self.params])


def read_model(params: optax.Params, roles: Mapping[str, str] = ROLES) -> Model:
    """The roles of all leaves of a tree of arrays or of their shapes.

    Raises:
      ValueError: if paths have no role, or layers lack members of a group (all of these are
        named), or if there are no layers, or parameters disagree on their number.
    """
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
    num_layers = _count_layers([param for param in known if "." in param.role])
    return Model(treedef, known, num_layers, _groups(known, num_layers, roles))


def _role_of(name: str, shape: tuple[int, ...], roles: Mapping[str, str]) -> ParamRole | None:
    for role, pattern in roles.items():
        if match := re.fullmatch(pattern, name):
            layer = match.groupdict().get("layer")
            return ParamRole(role, None if layer is None else int(layer), shape)
    return None


def _count_layers(params: Sequence[ParamRole]) -> int:
    """L, from the numbers in paths and the first axis of stacked parameters."""
    counts = {param.shape[0] if param.shape else 0 for param in params if param.layer is None}
    numbers = [param.layer for param in params if param.layer is not None]
    if numbers:
        counts.add(max(numbers) + 1)
    if len(counts) != 1 or 0 in counts:
        found = " and ".join(map(str, sorted(counts))) or "no"
        raise ValueError(f"the parameters must agree on the number of layers; found {found} layers")
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
