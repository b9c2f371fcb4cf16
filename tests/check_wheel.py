"""Checks an environment with the wheel and its requirements alone. Run with python -P."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import optax

import gmt_jax
from gmt_jax import gmt_mask

root = Path(__file__).parents[1]
assert root / "gmt_jax" != Path(gmt_jax.__file__).parent, "this is the checkout, not the wheel"
optimizer = optax.chain(gmt_mask(0.4), optax.sgd(1.0))
weights = jnp.zeros(5)
updates, _ = optimizer.update(jnp.arange(1.0, 6.0), optimizer.init(weights), weights)
assert updates.tolist() == [0, 0, -3, -4, -5], updates

installed = {name.metadata["Name"].lower() for name in importlib.metadata.distributions()}
unwanted = installed & {"flax", "transformers", "datasets", "orbax-checkpoint", "pydantic", "rich"}
assert not unwanted, unwanted
assert {"jax", "optax", "gmt-jax"} <= installed
assert importlib.util.find_spec("train") is None, "the wheel installs a package called train"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "gmt-train"
    return subprocess.run([program, *options], capture_output=True, text=True, cwd=root.anchor)


install = 'pip install "gmt-jax[train]"'
shown = run("--help")
assert shown.returncode == 0, shown
assert install in shown.stdout, shown.stdout
failed = run("sft", "--config", "any.yaml")
assert failed.returncode == 2, failed
assert install in failed.stderr, failed.stderr
configs = Path(gmt_jax.__file__).parents[1] / "gmt_train" / "configs"
for name in ("quickstart.yaml", "templates/tulu.jinja", "models/llama-2-7b/config.json"):
    assert (configs / name).is_file(), name
print(f"the wheel works alone, with {len(installed)} packages installed")
