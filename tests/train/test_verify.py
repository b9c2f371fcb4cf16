"""What is on disk is checked, and what can be resumed is said."""

from pathlib import Path

import pytest

from train.checkpoint_folder import CheckpointFolder
from train.errors import UserError
from train.manifest import write_manifest
from train.run import Run
from train.verify import verify_run


def test_every_part_of_a_run_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        list(verify_run(tmp_path))
    run = Run(tmp_path)
    folder = CheckpointFolder(run.checkpoints)
    for step in (4, 6):
        folder.saving(step).mkdir(parents=True)
        (folder.saving(step) / "data").write_text(str(step))
        folder.commit(step, {})
    for part in (run.export, run.adapter):
        part.mkdir()
        write_manifest(part, {"step": 6})
    run.log({"step": 6})
    assert list(verify_run(tmp_path)) == [
        (True, "checkpoint 4: whole"),
        (True, "checkpoint 6: whole"),
        (True, "export: whole, of step 6"),
        (True, "adapter: whole, of step 6"),
        (True, "metrics.jsonl: 1 records"),
        (True, "can be resumed from step 6"),
    ]
    (folder.step(6) / "data").write_text("7")
    (run.export / "manifest.json").unlink()
    (run.adapter / "manifest.json").write_text("{}")
    with run.metrics_file.open("a") as out:
        out.write("{\n")
    lines = list(verify_run(tmp_path))
    assert [ok for ok, _ in lines] == [True, False, False, False, False, False]
    assert lines[1][1] == "checkpoint 6: data has other content"
    assert lines[-1][1] == "cannot be resumed from step 4 until its other files are whole"
    run.metrics_file.unlink()
    assert list(verify_run(tmp_path))[-1] == (True, "can be resumed from step 4")
    run.config_file.write_text("steps: [")
    assert [ok for ok, _ in verify_run(tmp_path)][2:] == [False] * 4


def test_what_a_live_run_removes_meanwhile_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, fault = CheckpointFolder(Run(tmp_path).checkpoints), CheckpointFolder.fault

    def save(step: int) -> None:
        folder.saving(step).mkdir(parents=True)
        (folder.saving(step) / "data").write_text(str(step))
        folder.commit(step, {})

    def find_fault(self: CheckpointFolder, step: int) -> str | None:
        if step == 4:
            save(6)
            folder.prune(1, None)
        return fault(self, step)

    save(4)
    monkeypatch.setattr(CheckpointFolder, "fault", find_fault)
    assert list(verify_run(tmp_path)) == [
        (True, "checkpoint 6: whole"),
        (True, "can be resumed from step 6"),
    ]


def test_a_mirror_of_checkpoints_that_are_all_gone_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lists them still, when the bucket has none of them any more."""
    asked: list[int] = []

    def is_gone(_: CheckpointFolder, step: int) -> bool:
        asked.append(step)
        assert asked == [4], "again"
        return True

    monkeypatch.setattr(CheckpointFolder, "is_gone", is_gone)
    (Run(tmp_path).checkpoints / "4").mkdir(parents=True)  # Without the manifest that it had.
    assert list(verify_run(tmp_path)) == [(False, "cannot be resumed")]
