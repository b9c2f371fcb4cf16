"""Python's standard library as data: real, split by module, always the same."""

import ast
import re
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from train.data.python_stdlib import PREFERENCES, load_stdlib
from train.errors import UserError

Sides = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def _module(record: dict[str, Any]) -> str:
    found = re.fullmatch(r"python-stdlib ([^/:]+?)(?:\.py|/[^:]+):\d+", record["where"])
    assert found
    return found[1]


def _code(record: dict[str, Any]) -> str:
    answer = record["messages"][1]["content"]
    assert answer.startswith("```python\n")
    assert answer.endswith("\n```")
    return str(answer[len("```python\n") : -len("\n```")])


def test_there_is_enough_on_both_sides(stdlib: Sides) -> None:
    train_records, eval_records = stdlib
    assert len(train_records) > 2000
    assert 50 < len(eval_records) < 0.15 * len(train_records)


def test_no_module_and_no_function_is_on_both_sides(stdlib: Sides) -> None:
    modules = [{re.sub("^_(py)?", "", _module(r)) for r in side} for side in stdlib]
    assert len(modules[1]) > 3
    assert modules[0].isdisjoint(modules[1])
    codes = [ast.unparse(ast.parse(_code(r))) for side in stdlib for r in side]
    assert len(set(codes)) == len(codes)


def test_a_function_is_asked_for_and_answered_in_python(stdlib: Sides) -> None:
    for record in stdlib[0][::7]:
        question, answer = record["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        asked = re.fullmatch(
            r"Complete this Python function\.\n\n```python\n(.*)\n```", question["content"], re.S
        )
        assert asked
        (shown,) = ast.parse(asked[1]).body
        (written,) = ast.parse(_code(record)).body
        assert isinstance(shown, ast.FunctionDef | ast.AsyncFunctionDef)
        assert isinstance(written, ast.FunctionDef | ast.AsyncFunctionDef)
        assert shown.name == written.name
        assert ast.dump(shown.args) == ast.dump(written.args)
        assert ast.get_docstring(shown)
        assert len(shown.body) == 1


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of the test's own."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: {"stdlib": str(tmp_path)}[name])
    return tmp_path


GOOD = '''
import os

class Path:
    @property
    def name(self):
        """The name.

        Of the file.
        """

        # Of the last part.
        return self.parts[-1]

    class Inner:
        def hidden(self):
            """Not at the top."""
            return self

async def fetch(self):
    """Fetch it."""
    return await self
'''


def test_tasks_by_hand(library: Path) -> None:
    (library / "m.py").write_text(GOOD)
    train_records, eval_records = load_stdlib(0)
    assert eval_records == []
    assert train_records[0] == {
        "where": "python-stdlib m.py:6",
        "messages": [
            {
                "role": "user",
                "content": "Complete this Python function.\n\n```python\n@property\n"
                'def name(self):\n    """The name.\n\n    Of the file.\n    """\n```',
            },
            {
                "role": "assistant",
                "content": "```python\n@property\ndef name(self):\n"
                "    # Of the last part.\n    return self.parts[-1]\n```",
            },
        ],
    }
    assert [record["where"] for record in train_records[1:]] == ["python-stdlib m.py:20"]
    assert load_stdlib(0) == (train_records, [])
    assert load_stdlib(1) == ([], train_records)


def test_a_method_is_dedented_whatever_its_docstring_looks_like(library: Path) -> None:
    docstring = '"""Draw.\n\nA line without indentation.\n      A line with more.\n  Less.\n    """'
    (library / "m.py").write_text(
        f"class Shape:\n    @final\n    def draw(self):\n        {docstring}\n        return f()\n"
    )
    ((record,), _) = load_stdlib(0)
    assert record["messages"][0]["content"].split("```")[1] == (
        'python\n@final\ndef draw(self):\n    """Draw.\n\nA line without indentation.\n'
        '  A line with more.\n  Less.\n"""\n'
    )


@pytest.mark.parametrize(
    "body",
    [
        '    """Nothing."""',
        '    """Nothing."""\n    pass',
        '    """Nothing."""\n    ...',
        '    """Nothing."""\n    return None',
        '    """Nothing."""\n    raise NotImplementedError',
        '    """One line."""; return f()',
        "    return f()  # no docstring",
        '    """Long."""\n' + "    f()\n" * 60,
        '    """Long.' + "\n    more" * 30 + '"""\n    return f()',
    ],
)
def test_functions_with_nothing_to_learn_are_left_out(library: Path, body: str) -> None:
    (library / "m.py").write_text(f"{GOOD}\ndef bad(x):\n{body}\n")
    assert len(load_stdlib(0)[0]) == 2


def test_files_that_are_no_code_are_left_out(library: Path) -> None:
    (library / "m.py").write_text(GOOD)
    (library / "bad.py").write_text("def (:")
    (library / "latin.py").write_bytes(b"# \xff\n")
    (library / "escape.py").write_text('"\\d"\n')  # Warned of when it is compiled.
    (library / "test").mkdir()
    (library / "test" / "other.py").write_text(GOOD.replace("name", "other"))
    assert len(load_stdlib(0)[0]) == 2


def test_a_function_in_two_places_is_used_once(library: Path) -> None:
    (library / "a.py").write_text(GOOD)
    (library / "b.py").write_text(GOOD.replace("# Of the last part.", "# Another comment."))
    train_records, _ = load_stdlib(0)
    assert {_module(record) for record in train_records} == {"a"}


def test_python_without_its_source(library: Path) -> None:
    with pytest.raises(UserError, match="python-stdlib: no Python source in"):
        load_stdlib(0.05)


def test_preferences_are_functions_with_and_without_faults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "m.py").write_text(
        'def f(a, b):\n    """Subtract."""\n    return a - b\n'
        'def g(a):\n    """Call."""\n    return h(a)\n'
    )
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    (record,), _ = load_stdlib(0, PREFERENCES)  # The other function has nothing to change.
    assert record["where"] == "python-stdlib-preferences m.py:1"
    assert record["prompt"][0]["content"].endswith('"""Subtract."""\n```')
    chosen, rejected = (record[name][0]["content"] for name in ("chosen", "rejected"))
    assert chosen == "```python\ndef f(a, b):\n    return a - b\n```"
    assert rejected == "```python\ndef f(a, b):\n    return b + a\n```"
