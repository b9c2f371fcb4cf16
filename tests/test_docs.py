"""The code in the README and the guides runs, and what they name exists."""

import re
from itertools import takewhile
from pathlib import Path

import pytest

from train.__main__ import main
from train.config import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = {file.name: file.read_text(encoding="utf-8") for file in (ROOT / "docs").glob("*.md")}
ALL = "\n".join([README, *GUIDES.values()])
EXPRESSIONS = [
    found.replace("\\|", "|")
    for found in re.findall(r"`([^`\n]+)`", GUIDES["methods.md"])
    if re.match(r"[\w.]+\(", found)
]


def _commands() -> list[str]:
    """Every call of the program in a block of commands, on one line, without what follows it."""
    blocks = re.findall(r"```(?:console|bash)\n(.*?)```", ALL, re.DOTALL)
    lines = "\n".join(re.sub(r"\\?\n\s+", " ", block) for block in blocks).splitlines()
    calls = [call for line in lines for call in line.split("gmt-train ")[1:]]
    return sorted({re.split(r"['&#]", call)[0].strip() for call in calls})


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_blocks_run(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_inline_expressions_run() -> None:
    import jax.numpy as jnp
    import optax

    from gmt_jax import gmt, gmt_mask

    names = {"optax": optax, "gmt": gmt, "gmt_mask": gmt_mask}
    found = [
        e for e in re.findall(r"`([^`\n]+)`", README) if "gmt_mask(" in e or e.startswith("gmt(")
    ]
    assert len(found) >= 5
    for expression in found:
        transformation = eval(expression, names)
        transformation.update(jnp.ones(3), transformation.init(jnp.ones(3)), jnp.ones(3))


@pytest.mark.parametrize("command", sorted(set(re.findall(r"gmt-train ([a-z-]+)", ALL))))
def test_commands_exist(command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0


@pytest.mark.parametrize("call", _commands())
def test_options_and_settings_exist(call: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = call.split()
    command = list(takewhile(re.compile("[a-z][a-z-]*").fullmatch, words))
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    known = capsys.readouterr().out
    assert {word for word in words if word.startswith("--") and word not in known} == set()
    if "--config" in words:
        file = words[words.index("--config") + 1]
        settings = [word for word in words if re.match(r"[a-z]+[\w.]*=", word)]
        assert load_config(ROOT / file, settings) if file.startswith("configs/") else file == "FILE"


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_method_in_the_guide_runs(expression: str) -> None:
    import jax
    import jax.numpy as jnp
    import optax

    import gmt_jax

    attention = {name: jnp.ones((4, 2, 2)) for name in ("q", "k", "v", "out")}
    params = {"embed": jnp.ones((4, 2)), "layers": {"attention": attention}}
    names = {name: getattr(gmt_jax, name) for name in gmt_jax.__all__}
    names |= {"optax": optax, "jax": jax, "adamw": optax.adamw(1e-5)}
    state = gmt_jax.gmt(optax.adamw(1e-5), 0.2, report=True).init(params)
    made = eval(expression, names | {"base": params, "tuned": params, "state": state})
    assert made is not None
    if isinstance(made, optax.GradientTransformation):
        made, _ = made.update(params, made.init(params), params)
    if "state" not in expression:
        assert jax.tree.structure(made) == jax.tree.structure(params)


def test_every_public_name_is_in_the_guide() -> None:
    import gmt_jax

    functions = {name for name in gmt_jax.__all__ if name.islower()}
    said = " ".join(EXPRESSIONS)
    assert {name for name in functions if re.search(rf"\b{name}\(", said)} == functions


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", ALL, re.DOTALL))
def test_settings_are_valid(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    data = "" if text.startswith("data:") else "data: {train: d.jsonl}\n"
    file.write_text(f"run: r\nsteps: 1\nmodel: {{path: m}}\n{data}{text}")
    assert load_config(file).data.train


@pytest.mark.parametrize("folder", [".", "docs"])
def test_linked_files_exist(folder: str) -> None:
    texts = [README] if folder == "." else GUIDES.values()
    links = [link for t in texts for link in re.findall(r"\]\((?!http)([^)#]+)\)", t)]
    assert links or folder != "."
    assert not [link for link in links if not (ROOT / folder / link).exists()]
