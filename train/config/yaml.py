"""YAML as configs are written in it, and single settings laid over a file's."""

import re
from typing import Any

import yaml

from ..errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, without duplicate keys and with 1e-5 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """What the text says.

    Raises:
      UserError: with the line, for what is not YAML.
    """
    try:
        return yaml.load(text, _Loader)  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        problem = getattr(error, "problem", None) or "is not YAML"
        raise UserError(f"{place}: {problem}; correct the line") from None


def lay_over(tree: dict[str, Any], override: str) -> None:
    """Sets what `key.path=value` says in the tree."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"{override!r} is not an override; write key.path=value")
    *parents, last = path.split(".")
    for parent in parents:
        child = tree.get(parent)
        if child is None:
            child = tree[parent] = {}
        if not isinstance(child, dict):
            raise UserError(f"{override!r}: {parent} is a value and holds no keys")
        tree = child
    tree[last] = parse_yaml(text, override)
