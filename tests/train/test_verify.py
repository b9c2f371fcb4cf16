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
    run.export.mkdir()
    write_manifest(run.export, {"step": 6})
    run.log({"step": 6})
    assert list(verify_run(tmp_path)) == [
        (True, "checkpoint 4: whole"),
        (True, "checkpoint 6: whole"),
        (True, "export: whole, of step 6"),
        (True, "metrics.jsonl: 1 records"),
        (True, "can be resumed from step 6"),
    ]
    (folder.step(6) / "data").write_text("7")
    (run.export / "manifest.json").unlink()
    with run.metrics_file.open("a") as out:
        out.write("{\n")
    lines = list(verify_run(tmp_path))
    assert [ok for ok, _ in lines] == [True, False, False, False, True]
    assert lines[1][1] == "checkpoint 6: data has other content"
    assert lines[-1][1] == "can be resumed from step 4"
