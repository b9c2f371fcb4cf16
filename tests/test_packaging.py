"""pyproject.toml and CITATION.cff describe this tree."""

import re
import tomllib
from pathlib import Path

import yaml

import gmt_jax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_in_the_wheel() -> None:
    folders = [
        path.parent.relative_to(ROOT).parts
        for top in ("gmt_jax", "train")
        for path in (ROOT / top).rglob("__init__.py")
    ]
    installed_as = {"gmt_jax": "gmt_jax", "train": "gmt_train"}
    packages = {".".join([installed_as[top], *rest]) for top, *rest in folders}
    packages |= {f"gmt_train.configs{folder}" for folder in ("", ".models", ".tasks", ".templates")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages


def test_every_config_is_in_the_wheel() -> None:
    data = PROJECT["tool"]["setuptools"]["package-data"]
    shipped = {
        file
        for package, patterns in data.items()
        if package.startswith("gmt_train.configs")
        for pattern in patterns
        for file in (ROOT / package.removeprefix("gmt_train.").replace(".", "/")).glob(pattern)
    }
    files = {file for file in (ROOT / "configs").rglob("*") if file.is_file()}
    assert files == {file for file in shipped if file.is_file()}


def test_the_version_is_written_once() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == gmt_jax.__version__


def test_every_module_is_in_a_package() -> None:
    for top in ("gmt_jax", "train"):
        for module in (ROOT / top).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), module


def test_benchmarks_import_the_program_as_it_is_installed() -> None:
    for file in (ROOT / "benchmarks").glob("*.py"):
        assert not re.search(r"^\s*(?:from|import) train\b", file.read_text(), re.MULTILINE), file
