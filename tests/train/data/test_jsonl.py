"""JSON and JSONL files, and one line for everything that can be wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest

from train.data import jsonl
from train.data.jsonl import JsonlSource


def test_jsonl(read_all: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = ['{"text": "é", "n": 1}', '{"text": "b", "n": "two", "more": [{}]}', "", " ", ""]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert read_all(str(file)) == [
        {"text": "é", "n": 1, "where": f"{file}:1"},
        {"text": "b", "n": "two", "more": [{}], "where": f"{file}:2"},
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text" 1}', "is not JSON (Expecting ':' delimiter, column 9); write one JSON object a"),
        (b"{'text': 1}", "is not JSON (Expecting property name enclosed in double quotes"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'["text"]', 'is a list, not an object; write one JSON object a line, such as {"text"'),
        (b"null", "is null, not an object"),
        (b'{"text": "\xff"}', "byte 11 (0xff) is not UTF-8; save the file as UTF-8"),
        (b"", "is blank; delete the line"),
    ],
)
def test_a_bad_line_is_named(record_error: Any, tmp_path: Path, line: bytes, said: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "a"}\n' + line + b'\n{"text": "c"}\n')
    assert record_error(file).startswith(f"{file}:2: {said}")


def test_a_json_file_is_a_list_or_lines(
    read_all: Any, source_error: Any, record_error: Any, tmp_path: Path
) -> None:
    rows = [{"text": "a"}, {"text": "b"}]
    whole, lines = tmp_path / "list.json", tmp_path / "lines.json"
    whole.write_text("\ufeff" + json.dumps(rows, indent=1))
    lines.write_text("\n".join(map(json.dumps, rows)))
    assert read_all(str(whole)) == [
        {"text": "a", "where": f"{whole} item 1"},
        {"text": "b", "where": f"{whole} item 2"},
    ]
    assert [row["where"] for row in read_all(str(lines))] == [f"{lines}:1", f"{lines}:2"]
    whole.write_text('[\n{"text": 1},\n{"text" 2}\n]')
    assert source_error(whole).startswith(
        f"{whole}:3: is not JSON (Expecting ':' delimiter, column 9)"
    )
    whole.write_text('[{"text": 1}, 2]')
    assert record_error(whole) == f"{whole} item 2: is 2, not an object; write a list of objects"


def test_many_lines_are_read_in_any_order(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(f'{{"n": {n}}}\n' for n in range(1000)))
    records = JsonlSource(file)
    for number in (999, 0, 63, 64, 128, 127):
        assert records[number] == {"n": number}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{\n "text": "a"\n}\n', ": is one object over several lines; write a list of objects, or"),
        (
            '{\n "rows": [{"text": "a"}]\n}',
            ": is one object, not a list of objects; write its 'rows'",
        ),
        ('{"data": [{"text": "a"}]}', ": is one object, not a list of objects; write its 'data'"),
    ],
)
def test_an_object_is_not_a_list(
    source_error: Any, tmp_path: Path, content: str, said: str
) -> None:
    file = tmp_path / "a.json"
    file.write_text(content)
    assert source_error(file).startswith(f"{file}{said}")


def test_one_line_with_one_record_is_a_record(read_all: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"messages": []}\n')
    assert read_all(str(file)) == [{"messages": [], "where": f"{file}:1"}]


def test_a_large_file_is_not_read_whole_for_a_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One broken first line must not bring a file of any size into memory."""
    monkeypatch.setattr(jsonl, "_LARGEST_OBJECT", 10)
    file = tmp_path / "a.jsonl"
    file.write_text('{"text":\n "a"}\n')
    assert jsonl.read_json_list(file) is None
