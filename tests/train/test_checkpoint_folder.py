"""The folder of checkpoints, without arrays; tests/train/test_checkpoint.py has whole states."""

from pathlib import Path

import pytest

from train.checkpoint_folder import CheckpointFolder


def _save(folder: CheckpointFolder, *steps: int) -> None:
    for step in steps:
        folder.saving(step).mkdir(parents=True)
        (folder.saving(step) / "data").write_text(str(step))
        folder.commit(step, {"seed": 0})


def test_only_committed_steps_count(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "c")
    assert folder.steps == []
    _save(folder, 100, 20)
    folder.saving(120).mkdir()
    assert folder.steps == [20, 100]
    assert folder.fault(20) is None
    folder.clear()
    assert sorted(path.name for path in folder.path.iterdir()) == ["100", "20"]


@pytest.mark.parametrize(
    ("keep", "keep_every", "best", "left"),
    [
        (1, None, None, [10]),
        (3, None, None, [6, 8, 10]),
        (1, 4, None, [4, 8, 10]),
        (9, 4, None, [2, 4, 6, 8, 10]),
        (1, None, 4, [4, 10]),
        (1, 8, 10, [8, 10]),
    ],
)
def test_pruning(
    tmp_path: Path, keep: int, keep_every: int | None, best: int | None, left: list[int]
) -> None:
    folder = CheckpointFolder(tmp_path / "c")
    _save(folder, 2, 4, 6, 8, 10)
    folder.prune(keep, keep_every, best)
    assert folder.steps == left


def test_a_checkpoint_under_another_name_is_damage(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "c")
    _save(folder, 2, 4)
    folder.step(4).rename(folder.step(6))
    assert folder.fault(6) == "is a copy of step 4"
    folder.set_aside({6: "x"}, 2, rename=False)
    assert folder.steps == [2, 6]
    folder.set_aside({6: "x"}, 2, rename=True)
    assert folder.steps == [2]
