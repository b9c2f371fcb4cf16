"""Tasks in files, and a model folder that they are asked of."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def write_task(tmp_path: Path) -> Callable[..., Path]:
    """Writes a task file, whose data are records in a file beside it."""

    def write(name: str, records: list[dict[str, Any]] | None = None, **keys: Any) -> Path:
        task: dict[str, Any] = {"task": name, "dataset_path": "json", "test_split": "test"}
        if records is not None:
            data = tmp_path / f"{name}.jsonl"
            data.write_text("".join(json.dumps(record) + "\n" for record in records))
            task["dataset_kwargs"] = {"data_files": {"test": str(data)}}
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(task | keys))
        return file

    return write


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow files of `datasets` go into the test's own folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
