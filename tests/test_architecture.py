"""docs/architecture.md describes the modules as they are, and imports point downwards."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
# Modules, longest chain of imports, imports between modules.
MOST = {
    "gmt_jax": (20, 8, 60),
    "gmt_jax/_threshold": (10, 5, 25),
    "gmt_jax/compact": (5, 4, 7),
    "train": (45, 12, 256),
}


def _listed(package: str) -> list[str]:
    """The modules of a package in the page's order."""
    paths = re.findall(rf"^\| `{package}/(\w+)(?:\.py|/)` \|", PAGE, re.MULTILINE)
    assert len(paths) == len(set(paths)), paths
    return paths


def _imports(package: str) -> dict[str, set[str]]:
    """For each module of a package, the others that it imports; a folder counts as one."""
    top = ROOT / package
    edges: dict[str, set[str]] = {}
    for file in top.rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        owner = file.relative_to(top).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                start = parts[: len(parts) - node.level] if node.level else ()
                module = [*start, *(node.module or "").split(".")]
                names = {"/".join(filter(None, [*module, name.name])) for name in node.names}
                found = {
                    name.removeprefix(f"{package}/").split("/")[0]
                    for name in names
                    if name.startswith(f"{package}/")
                }
                edges.setdefault(owner, set()).update(found - {owner})
        edges.setdefault(owner, set())
    edges.pop("__init__")
    return {module: found & edges.keys() for module, found in edges.items()}


@pytest.mark.parametrize("package", MOST)
def test_every_module_is_on_the_page(package: str) -> None:
    assert set(_listed(package)) == set(_imports(package))


def test_every_file_of_the_programs_folders_is_on_the_page() -> None:
    files = {
        str(file.relative_to(ROOT / "train"))
        for file in (ROOT / "train").glob("*/*.py")
        if file.name != "__init__.py"
    }
    section = PAGE.split("### The program's folders")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(\w+/\w+\.py)`", row)}
    assert listed == files


@pytest.mark.parametrize("package", MOST)
def test_imports_point_downwards(package: str) -> None:
    order, imports = _listed(package), _imports(package)
    upwards = [
        f"{module} imports {found}"
        for module in order
        for found in imports[module]
        if order.index(found) < order.index(module)
    ]
    assert not upwards


@pytest.mark.parametrize("package", MOST)
def test_the_packages_stay_small(package: str) -> None:
    imports = _imports(package)
    height: dict[str, int] = {}
    for module in reversed(_listed(package)):
        height[module] = 1 + max((height[found] for found in imports[module]), default=0)
    size = len(imports), max(height.values()), sum(map(len, imports.values()))
    assert all(have <= most for have, most in zip(size, MOST[package], strict=True)), size


def test_the_library_imports_neither_the_program_nor_its_packages() -> None:
    allowed = {"gmt_jax", "jax", "numpy", "optax"}
    for file in (ROOT / "gmt_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: the library's imports are absolute"
                names = [node.module or ""]
            packages = {name.split(".")[0] for name in names}
            assert packages <= allowed | sys.stdlib_module_names, file


def test_files_on_the_page_exist() -> None:
    paths = set(re.findall(r"`((?:gmt_jax|train|docs|tests)/[\w./]*)`", PAGE))
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_names_on_the_page_are_defined_where_it_says() -> None:
    named = re.findall(r"`(\w+)`(?: and `(\w+)`)? in `([\w/]+\.py)`", PAGE)
    assert len(named) >= 5
    for *names, file in named:
        text = (ROOT / file).read_text(encoding="utf-8")
        for name in filter(None, names):
            assert re.search(rf"^(def |class )?{name}\b", text, re.MULTILINE), f"{file}: {name}"


MODULES = sorted(
    file
    for top in ("gmt_jax", "train")
    for file in (ROOT / top).rglob("*.py")
    if file.stem != "__init__"
)


def test_every_module_has_a_test_file_of_its_name() -> None:
    wanted = [file.relative_to(ROOT).parent / f"test_{file.stem.strip('_')}.py" for file in MODULES]
    assert not [str(path) for path in wanted if not (ROOT / "tests" / path).exists()]


def test_files_and_functions_are_short() -> None:
    for file in MODULES:
        text = file.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 300, file
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef):
                continue
            lines = range(node.lineno, (node.end_lineno or 0) + 1)
            docstring = node.body[0] if ast.get_docstring(node) else None
            of_docstring = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
            assert len(lines) - of_docstring <= 60, f"{file}: {node.name}"
            parameters = [*node.args.posonlyargs, *node.args.args]
            if re.match(r"_(?!_)", node.name):  # Public functions may have keyword options.
                parameters += node.args.kwonlyargs
            named = [p.arg for p in parameters if p.arg not in ("self", "cls")]
            assert len(named) <= 7, f"{file}: {node.name}"
