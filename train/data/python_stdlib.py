"""The `python-stdlib` sources: functions of Python's own standard library, to be completed.

It needs no download, every machine has it, and it is real code with real docstrings. The prompt
holds a function's signature and docstring; the answer is the function without its docstring, so
that the loss is on code. `python-stdlib-preferences` has the function as the chosen answer, and the
same with faults as the rejected one.
"""

import ast
import hashlib
import os
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .corruption import corrupt

NAME = "python-stdlib"
PREFERENCES = "python-stdlib-preferences"

# Tests, vendored packages and programs: little of it is code that a user of a library would write.
_SKIPPED = frozenset(
    [
        "__pycache__",
        "dist-packages",
        "idlelib",
        "idle_test",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    ]
)
_MAX_BODY_LINES = 40
_MAX_DOCSTRING_LINES = 12

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class _Task:
    """One function to complete; two functions that differ in layout alone have the same key."""

    prompt: str
    answer: str
    key: str


def load_stdlib(
    eval_fraction: float, name: str = NAME
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Conversations that complete a function: training records and evaluation records.

    All functions of a top-level module or package are in the same split, chosen by a hash of its
    name alone: the same on every machine and Python version. A function that occurs in several
    files (compared without comments, layout and docstring) is used once.

    Args:
      eval_fraction: the fraction of modules that is evaluation data.
      name: NAME, or PREFERENCES for those functions that can have a fault.

    Raises:
      UserError: if this Python comes without its library's source.
    """
    root = Path(sysconfig.get_path("stdlib"))
    splits: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    seen = set()
    for path in _source_files(root):
        relative = path.relative_to(root)
        records = splits[_is_eval(relative.parts[0].removesuffix(".py"), eval_fraction)]
        for line, task in _tasks(path):
            if task.key not in seen:
                seen.add(task.key)
                records += _records(task, name, f"{name} {relative.as_posix()}:{line}")
    if not seen:
        raise UserError(f"{NAME}: no Python source in {root}; use a Python that has it, or a file")
    return splits


def _source_files(root: Path) -> list[Path]:
    paths = []
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name not in _SKIPPED]  # os.walk skips the others.
        paths += [Path(folder, name) for name in files if name.endswith(".py")]
    return sorted(paths, key=lambda path: path.parts)


def _is_eval(module: str, fraction: float) -> bool:
    # A module's variants such as io, _io and _pyio are nearly copies of each other.
    name = re.sub("^_(py)?", "", module)
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _records(task: _Task, name: str, where: str) -> Iterator[dict[str, Any]]:
    """The record of a task; none if there are to be faults and it can have none."""
    question = {
        "role": "user",
        "content": f"Complete this Python function.\n\n```python\n{task.prompt}\n```",
    }
    if name == NAME:
        yield {"messages": [question, _answer(task.answer)], "where": where}
        return
    rejected = corrupt(task.answer)
    if rejected is not None:
        answers = {"chosen": [_answer(task.answer)], "rejected": [_answer(rejected)]}
        yield {"prompt": [question], **answers, "where": where}


def _answer(code: str) -> dict[str, str]:
    return {"role": "assistant", "content": f"```python\n{code}\n```"}


def _tasks(path: Path) -> Iterator[tuple[int, _Task]]:
    """The tasks in a file, each with the line its function starts on."""
    try:
        source = path.read_text(encoding="utf-8")
        tree = _parse(source)
    except (OSError, ValueError, SyntaxError):  # Another encoding, or a template for code.
        return
    lines = source.split("\n")
    for function in _functions(tree):
        task = _task(function, lines)
        if task is not None:
            yield function.lineno, task


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # About old escapes in the library's strings.
        return ast.parse(source)


def _functions(tree: ast.Module) -> Iterator[_Function]:
    """Functions at the top level and methods of classes there."""
    for node in tree.body:
        for inner in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(inner, _Function):
                yield inner


def _task(function: _Function, lines: list[str]) -> _Task | None:
    """A function's task, or None if it has no docstring or is not worth training on."""
    if ast.get_docstring(function) is None or not _is_worth_training_on(function.body[1:]):
        return None
    docstring, first = function.body[0], function.body[1]
    start = min([function.lineno, *(d.lineno for d in function.decorator_list)])
    end, after = docstring.end_lineno or 0, function.end_lineno or 0
    if not start < docstring.lineno <= end < first.lineno:
        return None  # Written on one line.
    if after - end > _MAX_BODY_LINES or end - docstring.lineno >= _MAX_DOCSTRING_LINES:
        return None
    header, body = lines[start - 1 : docstring.lineno - 1], lines[end:after]
    while not body[0].strip():
        body = body[1:]
    answer = textwrap.dedent("\n".join([*header, *body]))
    try:
        tree = _parse(answer)
    except SyntaxError:  # A string has lines with less indentation than the code.
        return None
    return _Task(_dedent(lines[start - 1 : end]), answer, ast.dump(tree))


def _dedent(lines: list[str]) -> str:
    """The lines without the first one's indentation.

    A line of a docstring may have less of it than the code, which `textwrap.dedent` would take for
    the indentation of all.
    """
    margin = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(
        "" if not line.strip() else line if line[:margin].strip() else line[margin:]
        for line in lines
    )


def _is_worth_training_on(body: list[ast.stmt]) -> bool:
    """Whether a body does something: neither empty nor only a refusal or a constant."""
    if len(body) != 1:
        return bool(body)
    only = body[0]
    if isinstance(only, ast.Return):
        return only.value is not None and not isinstance(only.value, ast.Constant)
    return not isinstance(only, ast.Pass | ast.Raise) and not (
        isinstance(only, ast.Expr) and isinstance(only.value, ast.Constant)
    )
