"""The code on every page runs, and the commands, settings and files that a page names exist."""

import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pydantic import BaseModel

import gmt_jax
from train.__main__ import main
from train.config import Config, load_config

ROOT = Path(__file__).parents[1]
PAGES = {
    str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
    for file in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
}
README = PAGES["README.md"]
ALL = "\n".join(PAGES.values())
EXPRESSIONS = [
    found.replace("\\|", "|")
    for found in re.findall(r"`([^`\n]+)`", PAGES["docs/methods.md"])
    if re.match(r"[\w.]+\(", found)
]


@pytest.fixture(autouse=True, scope="module")
def _promotion() -> Iterator[None]:
    """A reader's jax promotes dtypes and ranks, as optax's own code needs it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _commands() -> list[str]:
    """Every call of the program in a block of commands, on one line, without what follows it."""
    blocks = re.findall(r"```(?:console|bash)\n(.*?)```", ALL, re.DOTALL)
    lines = "\n".join(re.sub(r"\\?\n\s+", " ", block) for block in blocks).splitlines()
    calls = [call for line in lines for call in line.split("gmt-train ")[1:]]
    return sorted({re.split(r"['&#]", call)[0].strip() for call in calls})


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", ALL, re.DOTALL))
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = code.replace("gmt_train", "train")  # As it is called in a clone.
    exec(compile(code, "a page", "exec"), {"np": np, "Fraction": Fraction})


def test_inline_expressions_run() -> None:
    names = {"optax": optax, "gmt": gmt_jax.gmt, "gmt_mask": gmt_jax.gmt_mask}
    found = [
        e for e in re.findall(r"`([^`\n]+)`", README) if "gmt_mask(" in e or e.startswith("gmt(")
    ]
    assert len(found) >= 5
    for expression in found:
        _trace(eval(expression, names), jnp.ones(3))


def _trace(optimizer: optax.GradientTransformationExtraArgs, params: Any) -> Any:
    """The shapes of an update; tracing it is enough here and takes a tenth of compiling it."""
    state = jax.eval_shape(optimizer.init, params)
    updates, _ = jax.eval_shape(optimizer.update, params, state, params)
    return updates


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
        assert (
            load_config(ROOT / file, settings)
            if file.startswith("configs/")
            else file in ("FILE", "my.yaml")
        )


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_method_in_the_guide_runs(expression: str) -> None:
    attention = {name: jnp.ones((4, 2, 2)) for name in ("q", "k", "v", "out")}
    params = {"embed": jnp.ones((4, 2)), "layers": {"attention": attention}}
    names = {name: getattr(gmt_jax, name) for name in gmt_jax.__all__}
    names |= {"optax": optax, "jax": jax, "adamw": optax.adamw(1e-5)}
    reporting = gmt_jax.gmt(optax.adamw(1e-5), 0.2, report=True)
    names |= {"base": params, "tuned": params, "state": jax.eval_shape(reporting.init, params)}
    result = eval(expression, names)
    assert result is not None
    if isinstance(result, optax.GradientTransformation):
        result = _trace(result, params)
    if "state" not in expression:
        assert jax.tree.structure(result) == jax.tree.structure(params)


def test_every_public_function_is_in_the_guide() -> None:
    functions = {name for name in gmt_jax.__all__ if name.islower()}
    called = " ".join(EXPRESSIONS)
    assert {name for name in functions if re.search(rf"\b{name}\(", called)} == functions


def test_every_public_name_is_in_the_reference() -> None:
    listed = re.findall(
        r"^\.\. auto(?:function|class):: (\w+)$", PAGES["docs/api.md"], re.MULTILINE
    )
    assert sorted(listed) == sorted(gmt_jax.__all__)


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", ALL, re.DOTALL))
def test_settings_are_valid(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    data = "" if text.startswith("data:") else "data: {train: d.jsonl}\n"
    rest = "" if text.startswith("run:") else f"run: r\nsteps: 1000\nmodel: {{path: m}}\n{data}"
    file.write_text(f"{rest}{text}")
    assert load_config(file).data.train


def _settings(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of a section's settings, and of those within."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        for kind in (field.annotation, *_parts(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _settings(kind, f"{prefix}{name}.")


def _parts(annotation: Any) -> Iterator[Any]:
    for part in get_args(annotation):
        yield part
        yield from _parts(part)


def test_settings_that_pages_name_exist() -> None:
    known = set(_settings(Config))
    sections = "|".join({name.split(".")[0] for name in known if "." in name})
    text = "\n".join(page for name, page in PAGES.items() if name != "CHANGELOG.md")
    named = set(re.findall(rf"[` (]((?:{sections})\.[a-z][\w.]*\w)", text))
    files = {name for name in named if name.endswith((".gguf", ".json", ".jsonl", ".md"))}
    assert len(named) >= 15
    assert named - files <= known


def _anchors(page: str) -> set[str]:
    """The anchors that a page's headings get on GitHub and in the built site."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), link
        assert not anchor or anchor in _anchors(file.read_text(encoding="utf-8")), link


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|\$ )make ([a-z-]+)", ALL))
    assert {"quickstart", "test"} <= named <= targets


def test_every_target_is_described() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = " ".join(re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)).split()
    described = re.findall(r"^([a-z-]+):.*  ## \w", makefile, re.MULTILINE)
    assert sorted(phony) == sorted(described)
