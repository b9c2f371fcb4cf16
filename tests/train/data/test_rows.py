"""Rows in memory are kept as a file of the same records."""

from pathlib import Path
from typing import Any

import pytest

from train.data.rows import keep_rows
from train.data.sources import open_source
from train.errors import UserError

ROWS = [{"text": "naïve\u2028"}, {"messages": [{"role": "user", "content": None}], "n": 1.5}]


def test_equal_rows_are_one_file_with_those_records(tmp_path: Path) -> None:
    file = keep_rows(iter(ROWS), tmp_path / "new")
    records = open_source(str(file))
    assert [records[number] for number in range(len(records))] == ROWS
    assert keep_rows(ROWS, tmp_path / "new") == file
    assert keep_rows(ROWS[:1], tmp_path / "new") != file


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no rows"),
        (["a"], "row 0 is a str; rows are dictionaries"),
        ([{"text": "a"}, {"text": {1, 2}}], "row 1 cannot be written as JSON"),
        ([{"text": float("nan")}], "row 0 cannot be written as JSON"),
    ],
)
def test_rows_that_no_file_could_hold_are_refused(
    tmp_path: Path, rows: list[Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        keep_rows(rows, tmp_path)
    assert not list(tmp_path.iterdir())


def test_rows_that_were_changed_on_disk_are_written_anew(tmp_path: Path) -> None:
    file = keep_rows([{"text": "a"}], tmp_path)
    file.write_text('{"text": "b"}\n')
    assert keep_rows([{"text": "a"}], tmp_path).read_text() == '{"text": "a"}\n'
