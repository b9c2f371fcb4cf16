"""Functions with faults: the rejected answers of preferences that need no annotator."""

import ast
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

MOST = 3  # Faults in a function.

_OPPOSITES: dict[type[ast.AST], tuple[str, str]] = {
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Lt: ("<", ">="),
    ast.GtE: (">=", "<"),
    ast.Gt: (">", "<="),
    ast.LtE: ("<=", ">"),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
}


class _Edit(NamedTuple):
    """Bytes of a text, and what they become."""

    begin: int
    end: int
    text: bytes


def corrupt(source: str) -> str | None:
    """A function with up to MOST faults: an opposite operator, another variable, another number.

    It differs from the function in these words alone, and is the same on every machine. None if
    there is nothing to change.

    Example:
      >>> corrupt("def f(a):\\n    return a + 1")
      'def f(a):\\n    return a - 2'
    """
    content = source.encode()
    edits = sorted(_edits(ast.parse(source), content), key=lambda edit: _draw(content, edit))
    for edit in sorted(edits[:MOST], reverse=True):
        content = content[: edit.begin] + edit.text + content[edit.end :]
    return content.decode() if edits else None


def _draw(content: bytes, edit: _Edit) -> bytes:
    """A number that puts edits in an order that depends on the function alone."""
    place = f"{edit.begin} ".encode()
    return hashlib.blake2b(place + content, digest_size=8).digest()


def _edits(tree: ast.Module, content: bytes) -> Iterator[_Edit]:
    """What can be changed; no two edits have bytes in common."""
    starts = [0]
    for line in content.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)

    def span(node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        begin = starts[node.lineno - 1] + node.col_offset
        return begin, starts[node.end_lineno - 1] + node.end_col_offset

    def between(left: ast.expr, right: ast.expr, operator: ast.AST) -> Iterator[_Edit]:
        """The operator between two expressions, in white space or not."""
        if type(operator) in _OPPOSITES:
            word, opposite = (text.encode() for text in _OPPOSITES[type(operator)])
            begin, end = span(left)[1], span(right)[0]
            if content[begin:end].strip() == word:
                begin = content.index(word, begin)
                yield _Edit(begin, begin + len(word), opposite)

    inside_strings = {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
    }
    names = sorted({node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)})
    for node in ast.walk(tree):
        if node in inside_strings:  # Their positions are those of the string before Python 3.12.
            continue
        match node:
            case ast.Compare(left=left, ops=[operator], comparators=[right]):
                yield from between(left, right, operator)
            case ast.BoolOp(op=operator, values=[left, right]):
                yield from between(left, right, operator)
            case ast.BinOp(left=left, op=operator, right=right):
                yield from between(left, right, operator)
            case ast.Name(id=name, ctx=ast.Load()) if name in names and len(names) > 1:
                other = names[(names.index(name) + 1) % len(names)]
                yield _Edit(*span(node), other.encode())
            case ast.Constant(value=bool(value)):
                yield _Edit(*span(node), str(not value).encode())
            case ast.Constant(value=int(value)):
                yield _Edit(*span(node), str(value + 1).encode())
