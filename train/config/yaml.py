"""YAML as configs are written in it, and single settings that override a file's."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from ..errors import UserError


class _Loader(yaml.SafeLoader):
    """Reads YAML's safe subset, with 1e-5 as a number, and refuses duplicate keys.

    Aliases are refused: eight levels of them are a text of a hundred million characters.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, "aliases are not read; write the value again", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} occurs twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    number: int = loader.construct_yaml_int(node)
    str(number)  # Python refuses thousands of digits; no message could show them.
    return number


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str, source: str) -> Any:
    """Returns the value of a YAML text.

    Raises:
      UserError: with the source and the line, if the text is not valid YAML.
    """
    try:
        return yaml.load(text, _Loader)  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or "is not YAML"
        raise UserError(f"{where}: {problem}; correct the line") from None
    except (ValueError, OverflowError, RecursionError, TypeError) as error:
        # Dates that do not exist, numbers of thousands of digits, brackets without end.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{source[:200]}: is not YAML that can be read ({reason})") from None


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets the value of a `key.path=value` text in the tree.

    Raises:
      UserError: if the text is malformed, or the path leads through a value that is not a section.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"{override!r} is not a setting; write key.path=value")
    *parents, last = path.split(".")
    for parent in parents:
        child = tree.get(parent)
        if child is None:
            child = tree[parent] = {}
        if not isinstance(child, dict):
            raise UserError(f"{override!r}: {parent} is a value and has no keys")
        tree = child
    tree[last] = parse_yaml(text, override)


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every dotted key of a tree with its value, a section before its keys.

    >>> dict(flatten({"a": {"b": 1}}))
    {'a': {'b': 1}, 'a.b': 1}
    """
    for key, value in tree.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
