"""The folder of checkpoints, without arrays; tests/train/test_checkpoint.py has whole states."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from train import checkpoint_folder
from train.checkpoint_folder import CheckpointFolder
from train.errors import UserError
from train.manifest import Verify


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


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("a file")
    with pytest.raises(UserError, match=r"c: cannot be made \(File exists\); mend the disk"):
        CheckpointFolder(tmp_path / "c").clear()


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


@pytest.mark.parametrize(
    ("verify", "terminal", "least", "shown"),
    [
        ("full", True, 1, True),
        ("size", True, 1, False),
        ("full", False, 1, False),
        ("full", True, 1 << 30, False),
    ],
)
def test_a_terminal_shows_how_far_a_long_verification_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verify: Verify,
    terminal: bool,
    least: int,
    shown: bool,
) -> None:
    screen = StringIO()
    console = Console(file=screen, force_terminal=terminal, width=120)
    monkeypatch.setattr(checkpoint_folder, "Console", lambda stderr: console)
    monkeypatch.setattr(checkpoint_folder, "_SHOWN", least)
    folder = CheckpointFolder(tmp_path / "c", verify)
    _save(folder, 20)
    assert folder.fault(20) is None
    text = screen.getvalue()
    assert ("verifying step 20" in text and "100%" in text) == shown
    assert shown or not text.strip()
