"""Folders of a tiny model and of one tuned from it, and the delta between them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Tensors = dict[str, np.ndarray]
Change = Callable[[Tensors], None]
Rewrite = Callable[[Path, Change], None]
Copy = Callable[[Path, Path], Path]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="session")
def rewrite() -> Rewrite:
    """Changes the tensors of a folder."""
    from safetensors.numpy import load_file, save_file

    def rewrite(folder: Path, change: Change) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return rewrite


@pytest.fixture(scope="session")
def copy_folder() -> Copy:
    """Copies a folder's files into a new one."""

    def copy_folder(folder: Path, to: Path) -> Path:
        to.mkdir()
        for file in folder.iterdir():
            (to / file.name).write_bytes(file.read_bytes())
        return to

    return copy_folder


@pytest.fixture(scope="session")
def sparsely() -> Change:
    """Changes a twentieth of the entries of all tensors but one."""

    def sparsely(tensors: Tensors) -> None:
        rng = np.random.default_rng(1)
        for name, weights in tensors.items():
            if name != "model.norm.weight":
                tensors[name] = np.where(rng.random(weights.shape) < 0.05, -weights - 1, weights)

    return sparsely


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path, rewrite: Rewrite, copy_folder: Copy) -> Path:
    """The tiny model in bfloat16."""
    import ml_dtypes

    folder = copy_folder(tiny_model, tmp_path / "base")
    rewrite(folder, lambda t: t.update({k: v.astype(ml_dtypes.bfloat16) for k, v in t.items()}))
    return folder


@pytest.fixture
def tuned(
    base: Path, tmp_path: Path, rewrite: Rewrite, copy_folder: Copy, sparsely: Change
) -> Path:
    """The base with a twentieth of its entries changed."""
    folder = copy_folder(base, tmp_path / "tuned")
    rewrite(folder, sparsely)
    return folder


@pytest.fixture
def delta(base: Path, tuned: Path, tmp_path: Path) -> Path:
    """The delta from the base to the tuned folder."""
    from train.__main__ import main

    out = tmp_path / "some.delta"
    folders = ("--base", str(base), "--tuned", str(tuned), "--out", str(out))
    assert main(["delta", "extract", *folders]) == 0
    return out
