"""Run in an environment that holds the wheel and what it requires: the library works there."""

import importlib.metadata
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

program = Path(sys.executable).parent / "gmt-train"
command = [program, "sft", "--config", "any.yaml"]
done = subprocess.run(command, capture_output=True, text=True, cwd=root.anchor)
assert done.returncode == 2, done
assert 'pip install "gmt-jax[train]"' in done.stderr, done.stderr
print(f"the wheel works alone, with {len(installed)} packages installed")
