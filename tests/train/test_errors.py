"""Errors are shown as lines: one, or one per fault of the data up to a limit."""

import pytest

from train.errors import DataError, UserError, show


def test_an_error_is_one_line() -> None:
    assert UserError("file.txt:\n  is  missing").lines == ["file.txt: is missing"]


def test_faults_of_the_data_are_a_line_each() -> None:
    error = DataError(["a.jsonl:1: no\nmessages", "a.jsonl:2: no text"])
    assert error.lines == ["a.jsonl:1: no messages", "a.jsonl:2: no text"]
    assert str(error) == "a.jsonl:1: no messages; a.jsonl:2: no text"


def test_faults_above_the_limit_are_counted() -> None:
    assert len(DataError(["x"] * DataError.LIMIT).lines) == DataError.LIMIT
    lines = DataError(["x"] * (DataError.LIMIT + 1234)).lines
    assert lines[-1] == "… and 1,234 more"
    assert len(lines) == DataError.LIMIT + 1


def test_every_line_is_shown_with_the_programs_name(capsys: pytest.CaptureFixture[str]) -> None:
    show(DataError(["first", "second"]))
    captured = capsys.readouterr()
    assert captured.err == "gmt-train: error: first\ngmt-train: error: second\n"
    assert not captured.out
