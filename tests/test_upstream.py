"""The file proposed to optax passes its own tests and those that optax ships for optimizers."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import optax
import pytest

UPSTREAM = Path(__file__).parents[1] / "docs/upstream"
TABLE = "_MAIN_OPTIMIZERS_UNDER_TEST = [\n"
ENTRY = """\
    {
        'opt_name': 'gmt_adamw',
        'opt_kwargs': {'learning_rate': 1e-2, 'mask_ratio': 0.4},
    },
"""
# The tests of the other optimizers take an hour.
ONLY = """
for name in ('_MAIN_OPTIMIZERS_UNDER_TEST', '_ALL_OPTIMIZERS_UNDER_TEST'):
  globals()[name] = tuple(
      entry for entry in globals()[name] if entry['opt_name'] == 'gmt_adamw'
  )

"""
SHARDING = """
OPTIMIZERS = {'gmt_adamw': optax.contrib.gmt_adamw(1.0, 0.4)}

"""


def copy_of_optax(folder: Path) -> Path:
    """The installed optax with the proposed file and its entry in the table of common tests."""
    package = folder / "optax"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(optax.__file__).parent, package, ignore=ignore)
    for file in UPSTREAM.glob("_*.py"):
        shutil.copy(file, package / "contrib")
    with (package / "contrib/__init__.py").open("a", encoding="utf-8") as init:
        init.write("from optax.contrib._gradient_masking import gmt_adamw, gmt_mask\n")
    common = package / "contrib/_common_test.py"
    text = common.read_text(encoding="utf-8")
    text = text.replace(TABLE, TABLE + ENTRY, 1)
    text = text.replace("\nclass ContribTest", f"{ONLY}\nclass ContribTest", 1)
    common.write_text(text, encoding="utf-8")
    sharding = package / "_src/sharding_test.py"
    text = sharding.read_text(encoding="utf-8")
    text = text.replace("\nclass ShardingTest", f"{SHARDING}\nclass ShardingTest", 1)
    # It compares versions as strings, in which jax 0.10 is older than 0.7.
    text = text.replace("if jax.__version__ <", "if '9' <")
    sharding.write_text(text, encoding="utf-8")
    return package


@pytest.mark.slow
def test_optax_with_the_proposed_file_passes_its_tests(tmp_path: Path) -> None:
    package = copy_of_optax(tmp_path)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"],
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--doctest-modules"]
    command += ["-k", "not microbatch"]  # A function of optax, without an optimizer.
    names = ("_gradient_masking", "_gradient_masking_test", "_common_test")
    files = [
        *(f"{package}/contrib/{name}.py" for name in names),
        f"{package}/_src/sharding_test.py",
    ]
    result = subprocess.run(
        [*command, *files, f"{package}/_src/sharding_test.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    assert int(re.findall(r"(\d+) passed", result.stdout)[0]) >= 82, result.stdout
    assert "skipped" not in result.stdout
