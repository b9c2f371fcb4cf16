"""The README's way from an installation to a tuned model, from a wheel and outside a clone."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.split("### Your own model and data")[1].split("\n### ")[0]
COMMANDS = re.findall(r"^\$ (.+?)(?:\s+#.*)?$", SECTION, re.MULTILINE)
MODEL = re.compile(r"Qwen/[\w.-]+")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked where Python finds it; what it requires is this environment's."""
    pytest.importorskip("setuptools")
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "target"))
    for name in ("gmt_jax", "train", "configs", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    options = ["--no-build-isolation", "--target", str(target), str(source)]
    subprocess.run([*pip, *options], check=True)
    return target


def _run(command: list[str], installed: Path, folder: Path) -> str:
    environ = os.environ | {"PYTHONPATH": str(installed), "XLA_FLAGS": "", "HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_three_commands_lead_to_a_tuned_model(
    installed: Path, tiny_model: Path, tmp_path: Path
) -> None:
    assert len(COMMANDS) == 3
    assert COMMANDS[0].startswith("pip install ")
    rows = [{"instruction": f"{n} + {n}?", "output": str(2 * n)} for n in range(50)]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command in COMMANDS[1:]:
        program, *words = shlex.split(MODEL.sub(str(tiny_model), command))
        assert program == "gmt-train"
        printed = _run([sys.executable, "-P", "-m", "gmt_train", *words], installed, tmp_path)
    assert "runs/my/export" in printed
    files = {file.name for file in (tmp_path / "runs/my/export").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= files
    show = [sys.executable, "-P", "-m", "gmt_train", "plan", "--no-search", "--no-plain"]
    config = ["--config", "configs/quickstart.yaml", f"model.path={tiny_model}"]
    assert _run([*show, *config], installed, tmp_path)


def test_the_python_example_trains(installed: Path, tiny_model: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```py\n(.*?)```", SECTION, re.DOTALL)
    code = MODEL.sub(str(tiny_model), code).replace('"data": {', '"data": {"max_length": 64, ')
    printed = _run([sys.executable, "-P", "-c", code], installed, tmp_path)
    assert printed.rstrip().endswith("runs/sums/export")
