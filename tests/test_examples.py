"""The scripts in `examples/` train, and their optimizers' states pass through checkpoints.

`make examples` runs those whose packages are not in the development environment but install beside
jax's present version. The others run here with stand-ins for their packages, in `standins/`.
"""

import json
import os
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import nbformat
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True, scope="module")
def _promotion() -> Iterator[None]:
    """The examples are users' code, which promotes dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def _standins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(EXAMPLES.parent / "tests/standins")
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("easydel", "maxtext"):
            del sys.modules[name]


def namespace(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def run(name: str) -> Any:
    return namespace(name)["main"]()


def figures(text: str) -> tuple[list[float], list[float]]:
    """The losses and masked fractions that a script printed."""
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", text)]
    return losses, [float(masked) / 100 for masked in re.findall(r"masked ([\d.]+)%", text)]


def assert_comes_back(state: Any, folder: Path) -> None:
    """A tree of arrays has its bits, dtypes and shardings after a checkpoint of orbax."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(folder / "state", jax.eval_shape(lambda: state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        assert old.dtype == new.dtype
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compact_jax", "compact_nnx"])
def test_a_compact_script_trains(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(name)
    losses, masked = figures(capsys.readouterr().out)
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 5
    assert all(fraction == pytest.approx(0.95, abs=0.01) for fraction in masked)


@pytest.mark.parametrize("name", ["jax_jit", "flax_linen"])
def test_a_script_trains_and_its_state_comes_back(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = run(name)
    losses, masked = figures(capsys.readouterr().out)
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 5
    assert all(0.18 <= fraction <= 0.2 for fraction in masked)
    assert_comes_back(getattr(state, "opt_state", state), tmp_path)


def test_nnx_trains_sharded_parameters_and_its_state_comes_back(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, optimizer = run("flax_nnx")
    losses, masked = figures(capsys.readouterr().out)
    assert losses == sorted(losses, reverse=True)
    assert all(0.18 <= fraction <= 0.2 for fraction in masked)
    moment = optax.tree.get(nnx.as_pure(optimizer.opt_state), "mu")
    kernel = nnx.as_pure(nnx.state(model))["up"]["kernel"]
    assert not kernel.sharding.is_fully_replicated
    assert moment["up"]["kernel"].sharding.is_equivalent_to(kernel.sharding, 2)
    assert_comes_back(nnx.to_pure_dict(nnx.state(optimizer)), tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("_standins")
def test_easydel_wraps_its_optimizer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    state = run("easydel_trainer")
    losses, masked = figures(capsys.readouterr().out)
    assert losses == sorted(losses, reverse=True)
    assert masked[0] == pytest.approx(0.2, abs=0.02)
    moment = optax.tree.get(nnx.as_pure(state.opt_state), "mu")
    assert not moment["lm_head"]["kernel"].sharding.is_fully_replicated
    assert_comes_back(nnx.as_pure(state.opt_state), tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("_standins")
def test_maxtext_masks_each_scanned_layer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script = namespace("maxtext_optimizer")
    checkpoint = script["train"].main(["", "steps=4"])
    jax.effects_barrier()
    printed = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"loss: ([\d.]+)", printed)]
    assert losses == sorted(losses, reverse=True)
    masked = [float(fraction) for fraction in re.findall(r"masked ([\d.]+)", printed)]
    assert masked == pytest.approx([0.2] * 4, abs=0.02)
    # 10 matrices and norms, of which 9 in 3 layers have a threshold for each layer.
    assert checkpoint["opt_state"][0]["threshold"].shape == (3 + 9 * 3,)
    assert_comes_back(checkpoint, tmp_path)


NOTEBOOK = EXAMPLES / "gmt.ipynb"


def test_the_notebook_shows_its_pictures() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    users = {name: value for name, value in os.environ.items() if "PROMOTION" not in name}
    resources = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources)
    client.execute(env=users)
    texts = [
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    ]
    assert any("equal to the tuned model, bit for bit: True" in text for text in texts)
    losses = [float(loss) for text in texts for loss in re.findall(r"loss on Python (.+)", text)]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 3
