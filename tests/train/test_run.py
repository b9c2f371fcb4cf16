"""A run's folder: its records, and who may write to it."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from train import lease
from train.config import load_config
from train.errors import UserError
from train.manifest import write_manifest
from train.run import Run, read_records

Write = Callable[..., Path]


def test_a_line_cut_off_by_a_crash_is_skipped(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.log({"step": 3, "loss": 1.5})
    with run.metrics_file.open("a") as out:
        out.write('{"step": 4, "lo')
    run.forget_after(3)
    assert run.metrics_file.read_text().count("\n") == 1
    run.forget_after(2)
    assert run.metrics_file.read_text() == ""


def test_records_survive_any_text(tmp_path: Path) -> None:
    run = Run(tmp_path)
    texts = ["line\u2028separator", "naïve 東京 🙂", "next\x85line"]
    for text in texts:
        run.log_sample({"step": 1, "prompt": "p", "completion": text})
    raw = run.samples_file.read_bytes()
    run.samples_file.write_bytes(raw[:-9])  # A crash cuts the last line anywhere.
    assert [r["completion"] for r in read_records(run.samples_file)] == texts[:2]


def test_a_run_is_resumed_with_the_settings_that_it_was_started_with(write_config: Write) -> None:
    file = write_config()
    config = load_config(file)
    run = Run(Path(config.run))
    run.check(config, resume=False)
    run.start(config)
    assert Run.open(run.folder).config() == config
    with pytest.raises(UserError, match="already holds a run; continue it with --resume"):
        run.check(config, resume=False)
    run.check(load_config(file, ["log_every=7", "mesh.fsdp=2", "evaluation.every=5"]), resume=True)
    with pytest.raises(UserError, match=r"was started with another batch\.size; resume it with"):
        run.check(load_config(file, ["batch.size=16"]), resume=True)


def test_a_folder_with_other_files_is_refused(write_config: Write, tmp_path: Path) -> None:
    config = load_config(write_config())
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "notes.txt").touch()
    with pytest.raises(UserError, match="exists and is not a run"):
        Run(folder).check(config, resume=True)
    with pytest.raises(UserError, match=r"is not a run: it has no config\.yaml"):
        Run.open(folder)


def test_a_folder_that_cannot_be_created_is_one_line(write_config: Write, tmp_path: Path) -> None:
    config = load_config(write_config())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="set run to another folder"):
        Run(tmp_path / "file" / "run").start(config)


def test_a_run_is_finished_when_its_last_checkpoint_and_the_export_of_it_are_whole(
    write_config: Write,
) -> None:
    file = write_config(export_dtype="float32")
    config = load_config(file)
    run = Run(Path(config.run))
    run.start(config)
    last = run.checkpoints / "6"
    last.mkdir(parents=True)
    run.export.mkdir()
    assert not run.is_finished(config)
    (last / "data").write_text("weights")
    write_manifest(last, {"step": 6})
    assert not run.is_finished(config), "the export is none"
    assert run.is_finished(load_config(file, ["export_dtype=null"]))
    write_manifest(run.export, {"step": 4, "dtype": "float32"})
    assert not run.is_finished(config), "the export is an older step's"
    write_manifest(run.export, {"step": 6, "dtype": "float32"})
    assert run.is_finished(config)
    assert not run.is_finished(load_config(file, ["export_dtype=bfloat16"]))
    (last / "data").write_text("WEIGHTS")
    assert not run.is_finished(config), "the checkpoint is damaged"
    assert run.is_finished(load_config(file, ["checkpoint.verify=size"]))


def test_a_run_has_one_clock_and_one_start(write_config: Write) -> None:
    config = load_config(write_config())
    run = Run(Path(config.run))
    started = run.clock()
    contents = {"training data": "a", "the tokenizer": "b"}
    run.start(config, contents)
    again = Run(run.folder)
    assert again.clock() == started
    again.start(config, contents)
    for changed, names in (
        ({"training data": "c"}, "training data"),
        ({"the tokenizer": "c", "config.json rope": "d"}, "the tokenizer, config.json rope"),
    ):
        with pytest.raises(UserError, match=f"was started with other contents: {names} changed"):
            again.start(config, contents | changed)
    facts = json.loads(run.data_file.read_text())
    facts["started"] = "2024-07-09T05:06:07"
    run.data_file.write_text(json.dumps(facts))
    assert Run(run.folder).clock() == datetime(2024, 7, 9, 5, 6, 7)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"started": "2024-07-09T05:06:07"}', '{"started": "x", "contents": {}}'],
)
def test_damaged_facts_of_a_start_are_named(write_config: Write, text: str) -> None:
    config = load_config(write_config())
    run = Run(Path(config.run))
    run.start(config)
    run.data_file.write_text(text)
    for read in (Run(run.folder).clock, lambda: Run(run.folder).check_contents({})):
        with pytest.raises(UserError, match=r"data\.json: is damaged; bring it back from a copy"):
            read()


def test_a_run_without_facts_of_its_start_goes_on(write_config: Write) -> None:
    config = load_config(write_config())
    run = Run(Path(config.run))
    run.start(config, {"training data": "a"})
    run.data_file.unlink()
    again = Run(run.folder)
    again.start(config, {"training data": "b"})
    assert json.loads(again.data_file.read_text())["contents"] == {"training data": "b"}


def test_a_run_that_was_killed_before_its_config_begins_again(write_config: Write) -> None:
    config = load_config(write_config())
    run = Run(Path(config.run))
    run.folder.mkdir()
    for name in (".lock", ".config.yaml.0123abcd.new"):
        (run.folder / name).touch()
    run.check(config, resume=True)
    run.start(config)
    lease.release(run.folder)
    assert sorted(path.name for path in run.folder.iterdir()) == [
        ".lock",
        "config.yaml",
        "data.json",
    ]


@pytest.mark.parametrize("line", ["{", "[]", "[" * 5000, '{"step": "x"}', "\xff", '{"loss": 1}'])
def test_a_damaged_record_is_named(tmp_path: Path, line: str) -> None:
    run = Run(tmp_path)
    run.log({"step": 3})
    with run.metrics_file.open("ab") as out:
        out.write(line.encode("latin-1") + b"\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: is not a record; bring the file back"):
        _ = run.records
