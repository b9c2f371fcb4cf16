"""The README's code runs, and what it names exists."""

import re
from pathlib import Path

import pytest

from train.__main__ import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_blocks_run(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_inline_expressions_run() -> None:
    import jax.numpy as jnp
    import optax

    from gmt_jax import gmt_mask

    names = {"optax": optax, "gmt_mask": gmt_mask}
    found = [e for e in re.findall(r"`([^`\n]+)`", README) if "gmt_mask(" in e]
    assert len(found) >= 5
    for expression in found:
        transformation = eval(expression, names)
        transformation.update(jnp.ones(3), transformation.init(jnp.ones(3)), jnp.ones(3))


@pytest.mark.parametrize("command", sorted(set(re.findall(r"gmt-train ([a-z-]+)", README))))
def test_commands_exist(command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
