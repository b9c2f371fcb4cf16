"""Patterns, several files, digests, and what cannot be opened."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from train.data.sources import ListSource, open_source
from train.errors import UserError


def test_a_pattern_takes_files_by_name(read_all: Any, write_parquet: Any, tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    write_parquet(tmp_path / "c.parquet", [{"text": "c"}])
    rows = read_all(str(tmp_path / "*.*l*")) + read_all(str(tmp_path / "**/*.parquet"))
    assert [row["text"] for row in rows] == ["a.jsonl", "b.jsonl", "c"]
    assert rows[1]["where"] == f"{tmp_path}/b.jsonl:1"


def test_records_are_counted_over_files(tmp_path: Path) -> None:
    for name, count in (("a", 2), ("b", 0), ("c", 1)):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "x"}\n' * count)
    records = open_source(str(tmp_path / "*.jsonl"))
    assert len(records) == 3
    assert records.where(2) == f"{tmp_path}/c.jsonl:1"
    with pytest.raises(IndexError):
        records[3]


@pytest.mark.parametrize("kind", ["a.jsonl", "a.json", "a.parquet", "a.csv"])
def test_the_digest_is_that_of_the_content(write_parquet: Any, tmp_path: Path, kind: str) -> None:
    def write(text: str) -> str:
        file = tmp_path / kind
        if kind == "a.parquet":
            write_parquet(file, [{"text": text}])
        elif kind == "a.csv":
            file.write_text(f"text\n{text}\n")
        else:
            row = json.dumps({"text": text})
            file.write_text(f"[{row}]" if kind == "a.json" else row)
        return open_source(str(file)).digest()

    first = write("x")
    assert write("y") != first
    assert write("x") == first


def test_the_digest_of_rows_in_memory() -> None:
    one, two = ({"text": text, "where": "1"} for text in "ab")
    assert ListSource([one]).digest() != ListSource([two]).digest()
    assert ListSource([one])[0] == {"text": "a"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.jsonl", "no such file"),
        ("nowhere.csv", "no such file"),
        ("no/such/*.jsonl", "no such file"),
        ("./nowhere", "no such file"),
        ("a.txt", "is of an unknown kind; name a .jsonl, .json, .parquet or .csv file"),
        ("folder", "is a folder; name its files"),
        ("empty.jsonl", "holds no records"),
        ("empty.json", "holds no records"),
        ("empty.csv", "holds no records"),
        ("blank.jsonl", "holds no records"),
        ("nobody/has-this", "[train]: cannot be loaded from the hub"),
        ("nobody/has-this/config", "[train]: cannot be loaded from the hub"),
    ],
)
def test_nothing_to_read(
    source_error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    for file, content in (
        ("a.txt", "x"),
        ("empty.csv", ""),
        ("empty.jsonl", ""),
        ("blank.jsonl", "\n\n"),
    ):
        Path(file).write_text(content)
    Path("empty.json").write_text("[]")
    fault = source_error(name)
    assert fault.startswith(name)
    assert said in fault


def test_a_named_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "a.jsonl"
    os.mkfifo(pipe)
    for source in (pipe, tmp_path / "*.jsonl"):
        with pytest.raises(UserError, match=r"a\.jsonl: is a pipe or a device"):
            open_source(str(source))
