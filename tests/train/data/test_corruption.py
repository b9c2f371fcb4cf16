"""Functions with faults: they parse, differ in a few words, and are the same everywhere."""

import ast

import pytest

from train.data.corruption import MOST, corrupt


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(a, b):\n    return a", "def f(a, b):\n    return b"),
        ("def f(a):\n    return a<2", "def f(a):\n    return a>=3"),
        ("def f(a):\n    return a is not None", "def f(a):\n    return a is None"),
        ("def f(a):\n    return not a or True", "def f(a):\n    return not a and False"),
        ("def f(é):\n    return 'é' + é", "def f(é):\n    return 'é' - é"),
        ("def f(a):\n    return (a)  + (\n1)", "def f(a):\n    return (a)  + (\n2)"),
        ("def f(a):\n    return f'{a + 1}'", None),
        ("def f(a):\n    return g(a)", None),
    ],
)
def test_a_fault_is_a_word(source: str, expected: str | None) -> None:
    assert corrupt(source) == expected


def test_a_long_function_has_a_few_faults() -> None:
    body = "\n".join(f"    a = a + {n}" for n in range(20))
    source = f"def f(a):\n{body}"
    corrupted = corrupt(source)
    assert corrupted is not None
    changed = [x != y for x, y in zip(source.split("\n"), corrupted.split("\n"), strict=True)]
    assert 1 <= sum(changed) <= MOST
    ast.parse(corrupted)
    assert corrupt(source) == corrupted
