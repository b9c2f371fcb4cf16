"""What importing the library brings."""

import subprocess
import sys


def test_the_import_brings_jax_and_optax_alone() -> None:
    script = (
        "import sys, jax, optax; before = set(sys.modules); import gmt_jax; "
        "print([m for m in set(sys.modules) - before if not m.startswith(('gmt_jax', 'jax.'))], "
        "'flax' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split("]")[1].split() == ["False", "False"], done.stderr
    allowed = {"fractions", "numbers", "decimal", "_decimal", "_pydecimal"}
    brought = set(done.stdout.split("]")[0].strip("[").replace("'", "").split(", ")) - {""}
    assert brought <= allowed
