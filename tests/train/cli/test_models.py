"""export and import-gguf pass their options on."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.__main__ import main
from train.config import dump_config, load_config

Capture = pytest.CaptureFixture[str]


def test_export_names_the_folder_it_wrote(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("train.restore.export_run", lambda run, out, dtype: f"{run}/{out}/{dtype}")
    assert main(["export", "r", "--dtype", "float32"]) == 0
    assert capsys.readouterr().out == "wrote r/None/float32\n"


def test_an_adapter_of_another_dtype_is_refused(capsys: Capture) -> None:
    assert main(["export", "r", "--adapter", "--dtype", "bfloat16"]) == 2
    assert "an adapter is written in float32; remove --dtype" in capsys.readouterr().err


@pytest.mark.parametrize("gguf", ["mine.gguf", None])
def test_import_gguf_takes_a_file_or_the_packaged_model(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, gguf: str | None
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("train.hf.gguf.import_gguf", lambda *given: calls.append(given))
    monkeypatch.setattr("train.hf.gguf.smollm2_gguf", lambda: Path("packaged.gguf"))
    assert main(["import-gguf", "--out", "m", *(["--gguf", gguf] if gguf else [])]) == 0
    assert calls == [(Path(gguf or "packaged.gguf"), Path("m"), "float32")]
    assert capsys.readouterr().out == "wrote m\n"


def test_a_folder_that_is_not_a_run_cannot_be_exported(tmp_path: Path, capsys: Capture) -> None:
    assert main(["export", str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err


def test_an_export_does_not_write_over_a_model(
    write_config: Callable[..., Path], tiny_model: Path, tmp_path: Path, capsys: Capture
) -> None:
    config = load_config(write_config())
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(config))
    mine = tmp_path / "mine"
    shutil.copytree(tiny_model, mine)
    before = {file.name: file.read_bytes() for file in mine.iterdir()}
    assert main(["export", str(run), "--out", str(mine)]) == 2
    assert "mine is not empty" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in mine.iterdir()} == before
