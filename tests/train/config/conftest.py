"""A config file with only the keys that are required."""

from pathlib import Path

import pytest


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    file = tmp_path / "c.yaml"
    file.write_text("run: runs/x\nmodel: {path: m}\ndata: {train: d.jsonl}\n")
    return file
