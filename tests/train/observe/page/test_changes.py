"""Which weights moved, and by how much."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from train.errors import UserError
from train.observe.page.changes import Change, find_changes, grids

NAMES = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.norm")


def folders(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    before = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    after = before.astype(ml_dtypes.bfloat16)
    after[0] = after[0] * 2
    for folder, weights in ((base, before), (tuned, before.astype(ml_dtypes.bfloat16))):
        folder.mkdir()
        save_file(dict.fromkeys(NAMES, weights), folder / "model.safetensors")
    save_file(
        dict.fromkeys(NAMES, before.astype(ml_dtypes.bfloat16)) | {NAMES[1]: after},
        tuned / "model.safetensors",
    )
    return base, tuned, before


def test_rounding_is_no_change(tmp_path: Path) -> None:
    base, tuned, before = folders(tmp_path)
    first, second, third = find_changes(base, tuned)
    assert first == Change(NAMES[0], 0.0, 0.0)
    assert third == Change(NAMES[2], 0.0, 0.0)
    assert second.share == 1 / 4
    expected = np.linalg.norm(before[0]) / np.linalg.norm(before)
    assert second.size == pytest.approx(expected, rel=1e-2)


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    base, tuned, before = folders(tmp_path)
    save_file({"other": before}, tuned / "model.safetensors")
    with pytest.raises(UserError, match="do not match"):
        find_changes(base, tuned)


def test_matrices_by_layers() -> None:
    share, size = grids([Change(name, n / 10, n / 5) for n, name in enumerate(NAMES)])
    assert share.rows == ["mlp.up_proj", "model.norm"]
    assert share.columns == ["none", "0", "1"]
    np.testing.assert_array_equal(share.values, [[np.nan, 0, 0.1], [0.2, np.nan, np.nan]])
    np.testing.assert_array_equal(size.values, 2 * share.values)
