"""What each parameter of a transformer is, told by its path.

`ROLES` has a pattern for every role in the models that are known here: in this project's trees,
whose layers are stacked along the first axis, and in trees with a path a layer, such as Hugging
Face's names. A path that is of no role is an error, so that nothing is trained, or left untrained,
by oversight.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gmt_jax.tree_paths import path_name

_PARAM = "(?:/(?:weight|kernel|bias|scale|embedding))?"
_OUTSIDE = r"(?!.*layers[/_])(?:.*/)?"
_LAYER = r"(?:.*/)?layers(?:[/_](?P<layer>\d+))?/"
_ATTENTION = _LAYER + "(?:attention|attn|self_attn)/"

# Role -> pattern of the whole path, its parts divided by "/". A role with a dot, "group.member", is
# in a layer: its pattern has the layer's number as `layer`, and matches without one where layers
# are stacked. The other roles lie outside the layers.
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
# The group of which a model need not have every member: few have query and key norms.
OPTIONAL = "norm"


class Place(NamedTuple):
    """What and where a parameter is."""

    role: str
    layer: int | None  # None outside the layers, and of a parameter that is stacked over them
    shape: tuple[int, ...]


class Model(NamedTuple):
    """What the paths of a tree say."""

    treedef: Any
    places: list[Place]  # a leaf
    layers: int  # L
    groups: dict[str, list[str]]  # group -> its roles, in the table's order

    def masks(self, chosen: Mapping[str, jax.Array]) -> Any:
        """A tree of bool masks that are broadcastable to the leaves.

        Args:
          chosen: for every role in the layers, in which of them it is chosen: bool [L].
        """

        def one(place: Place) -> jax.Array:
            if place.role not in chosen:
                return jnp.ones((), bool)
            if place.layer is not None:
                return chosen[place.role][place.layer]
            return chosen[place.role].reshape(-1, *[1] * (len(place.shape) - 1))

        return jax.tree.unflatten(self.treedef, [one(place) for place in self.places])


def read_model(params: Any, roles: Mapping[str, str] = ROLES) -> Model:
    """The roles of all leaves of a tree of arrays or of their shapes.

    Raises:
      ValueError: naming all paths that are of no role, or all members that a layer lacks; or if
        there are no layers, or not as many in one place as in another.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(params)
    found = [(path_name(path).replace(".", "/"), tuple(leaf.shape)) for path, leaf in flat]
    places = [_place(name, shape, roles) for name, shape in found]
    unknown = [name for (name, _), place in zip(found, places, strict=True) if place is None]
    if unknown:
        raise ValueError(
            f"the role of these parameters is not known: {', '.join(_short(unknown))}; "
            "say it in `roles`"
        )
    known = [place for place in places if place is not None]
    layers = _count_layers([place for place in known if "." in place.role])
    return Model(treedef, known, layers, _groups(known, layers, roles))


def _place(name: str, shape: tuple[int, ...], roles: Mapping[str, str]) -> Place | None:
    for role, pattern in roles.items():
        if match := re.fullmatch(pattern, name):
            layer = match.groupdict().get("layer")
            return Place(role, None if layer is None else int(layer), shape)
    return None


def _count_layers(places: Sequence[Place]) -> int:
    """L, from the numbers in the paths and from the length of what is stacked."""
    counts = {place.shape[0] if place.shape else 0 for place in places if place.layer is None}
    numbers = [place.layer for place in places if place.layer is not None]
    if numbers:
        counts.add(max(numbers) + 1)
    if len(counts) != 1 or 0 in counts:
        said = " and ".join(map(str, sorted(counts))) or "no"
        raise ValueError(f"the parameters are of {said} layers; needed is one number of them")
    return counts.pop()


def _groups(places: Sequence[Place], layers: int, roles: Mapping[str, str]) -> dict[str, list[str]]:
    there: dict[str, set[int]] = {}
    for place in places:
        where = range(layers) if place.layer is None else [place.layer]
        there.setdefault(place.role, set()).update(where)
    present = {role.partition(".")[0] for role in there if "." in role}
    groups: dict[str, list[str]] = {}
    for role in roles:
        group = role.partition(".")[0]
        if "." in role and group in present and (role in there or group != OPTIONAL):
            groups.setdefault(group, []).append(role)
    lacking = [
        f"{role} in layer {layer}"
        for members in groups.values()
        for role in members
        for layer in sorted(set(range(layers)) - there.get(role, set()))
    ]
    if lacking:
        raise ValueError(f"the parameters lack {', '.join(lacking)}")
    return groups


def _short(names: Sequence[str]) -> list[str]:
    """The names, those that differ in numbers alone as one."""
    return sorted({re.sub(r"(?<=[/_])\d+(?=/|$)", "*", name) for name in names})
