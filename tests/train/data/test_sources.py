"""Files and hub data sets, and one line for everything that can be wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest

from train.data.sources import Listed, open_rows
from train.errors import UserError


def _rows(*args: Any) -> list[dict[str, Any]]:
    rows = open_rows(*args)
    return [rows[at] | {"where": rows.where(at)} for at in range(len(rows))]


def _fault(source: Path | str) -> str:
    """What is wrong with a source, or with its first row that cannot be read."""
    with pytest.raises(UserError) as caught:
        open_rows(str(source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _row_fault(source: Path) -> str:
    """What is wrong with the first row that cannot be read, with its place."""
    rows = open_rows(str(source))

    def fault(at: int) -> str | None:
        try:
            rows[at]
        except UserError as error:
            return f"{rows.where(at)}: {error}"
        return None

    said = next(filter(None, map(fault, range(len(rows)))))
    assert "\n" not in said
    return said


def _parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    from datasets import Dataset

    Dataset.from_list(rows).to_parquet(path)
    return path


def test_jsonl(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = ['{"text": "é", "n": 1}', '{"text": "b", "n": "two", "more": [{}]}', "", " ", ""]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert _rows(str(file)) == [
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
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, said: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "a"}\n' + line + b'\n{"text": "c"}\n')
    assert _row_fault(file).startswith(f"{file}:2: {said}")


def test_a_json_file_is_a_list_or_lines(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": "b"}]
    whole, lines = tmp_path / "list.json", tmp_path / "lines.json"
    whole.write_text("\ufeff" + json.dumps(rows, indent=1))
    lines.write_text("\n".join(map(json.dumps, rows)))
    assert _rows(str(whole)) == [
        {"text": "a", "where": f"{whole} item 1"},
        {"text": "b", "where": f"{whole} item 2"},
    ]
    assert [row["where"] for row in _rows(str(lines))] == [f"{lines}:1", f"{lines}:2"]
    whole.write_text('[\n{"text": 1},\n{"text" 2}\n]')
    assert _fault(whole).startswith(f"{whole}:3: is not JSON (Expecting ':' delimiter, column 9)")
    whole.write_text('[{"text": 1}, 2]')
    assert _row_fault(whole) == f"{whole} item 2: is 2, not an object; write a list of objects"


def test_parquet(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}]
    file = _parquet(tmp_path / "a.parquet", [{"messages": messages}, {"messages": None}])
    assert _rows(str(file)) == [
        {"messages": messages, "where": f"{file} row 1"},
        {"messages": None, "where": f"{file} row 2"},
    ]


@pytest.mark.parametrize("harm", [lambda b: b[:-9], lambda b: b"", lambda b: b"text" * 9])
def test_a_broken_parquet_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], harm: Any
) -> None:
    file = _parquet(tmp_path / "a.parquet", [{"text": "a"}])
    file.write_bytes(harm(file.read_bytes()))
    capfd.readouterr()
    assert _fault(file) == f"{file}: is not a whole Parquet file; write or fetch it again"
    assert capfd.readouterr().err == ""


def test_parquet_with_a_broken_footer(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(b"PAR1" + bytes(20) + b"PAR1")
    assert _fault(file).startswith(f"{file}: cannot be read as Parquet (")


def test_a_pattern_takes_files_by_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    _parquet(tmp_path / "c.parquet", [{"text": "c"}])
    rows = _rows(str(tmp_path / "*.*l*")) + _rows(str(tmp_path / "**/*.parquet"))
    assert [row["text"] for row in rows] == ["a.jsonl", "b.jsonl", "c"]
    assert rows[1]["where"] == f"{tmp_path}/b.jsonl:1"


def test_records_are_counted_over_files(tmp_path: Path) -> None:
    for name, count in (("a", 2), ("b", 0), ("c", 1)):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "x"}\n' * count)
    records = open_rows(str(tmp_path / "*.jsonl"))
    assert len(records) == 3
    assert records.where(2) == f"{tmp_path}/c.jsonl:1"
    with pytest.raises(IndexError):
        records[3]


def test_many_lines_are_read_in_any_order(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(f'{{"n": {n}}}\n' for n in range(1000)))
    rows = open_rows(str(file))
    for at in (999, 0, 63, 64, 128, 127):
        assert rows[at] == {"n": at}


def test_csv_is_text(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('prompt,completion\n1,"two,\nthree"\nnull,\n', encoding="utf-8-sig")
    assert _rows(str(file)) == [
        {"prompt": "1", "completion": "two,\nthree", "where": f"{file} row 1"},
        {"prompt": "null", "completion": "", "where": f"{file} row 2"},
    ]


def test_a_malformed_line_of_csv_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("a,b\n1,2\n1,2,3\n")
    assert _fault(file).startswith(f"{file}:3: cannot be read as CSV (")


def test_arrow_folders(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    one, two = tmp_path / "one", tmp_path / "two"
    Dataset.from_list([{"text": "a"}]).save_to_disk(one)
    DatasetDict({"test": Dataset.from_list([{"text": "b"}])}).save_to_disk(two)
    assert _rows(str(one)) == [{"text": "a", "where": f"{one} row 1"}]
    assert _rows(str(two), "test") == [{"text": "b", "where": f"{two}[test] row 1"}]
    assert _fault(two) == f"{two}: has no split 'train'; it has test"


@pytest.mark.parametrize("kind", ["a.jsonl", "a.json", "a.parquet", "a.csv"])
def test_the_digest_is_that_of_the_content(tmp_path: Path, kind: str) -> None:
    def write(text: str) -> str:
        file = tmp_path / kind
        if kind == "a.parquet":
            _parquet(file, [{"text": text}])
        elif kind == "a.csv":
            file.write_text(f"text\n{text}\n")
        else:
            row = json.dumps({"text": text})
            file.write_text(f"[{row}]" if kind == "a.json" else row)
        return open_rows(str(file)).digest()

    first = write("x")
    assert write("y") != first
    assert write("x") == first


def test_the_digest_of_rows_in_memory() -> None:
    one, two = ({"text": text, "where": "1"} for text in "ab")
    assert Listed([one]).digest() != Listed([two]).digest()
    assert Listed([one])[0] == {"text": "a"}


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
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
    fault = _fault(name)
    assert fault.startswith(name)
    assert said in fault


def test_a_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        return datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert _rows("some/set", "test", "v1")[1] == {"text": "b", "where": "some/set[test] row 2"}
    assert _rows("some/set/main")[0]["where"] == "some/set/main[train] row 1"
    assert asked == [
        (("some/set",), {"split": "test", "revision": "v1"}),
        (("some/set", "main"), {"split": "train", "revision": None}),
    ]
