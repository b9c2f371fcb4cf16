"""Parquet, CSV, Arrow folders and hub data sets, and what is broken about them."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.errors import UserError

FUNCTIONS: list[dict[str, Any]] = [
    {"name": "add", "arguments": {"a": 3, "b": [1, None]}},
    {"name": "when", "arguments": {"city": "Oslo"}},
]
CALLS = [
    {
        "messages": [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
        ],
        "tools": [
            {
                "name": function["name"],
                "parameters": {k: {"type": k} for k in function["arguments"]},
            }
        ],
    }
    for function in FUNCTIONS
]
TEMPLATE = (
    "{{ tools | tojson }}{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}{{ c | tojson }}{% endfor %}<e>\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def test_parquet(read_all: Any, write_parquet: Any, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}]
    file = write_parquet(tmp_path / "a.parquet", [{"messages": messages}, {"messages": None}])
    assert read_all(str(file)) == [
        {"messages": messages, "where": f"{file} row 1"},
        {"where": f"{file} row 2"},
    ]


@pytest.mark.parametrize("harm", [lambda b: b[:-9], lambda b: b"", lambda b: b"text" * 9])
def test_a_broken_parquet_file(
    source_error: Any,
    write_parquet: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    harm: Any,
) -> None:
    file = write_parquet(tmp_path / "a.parquet", [{"text": "a"}])
    file.write_bytes(harm(file.read_bytes()))
    capfd.readouterr()
    assert source_error(file) == f"{file}: is not a whole Parquet file; write or fetch it again"
    assert capfd.readouterr().err == ""


def _not_utf8() -> Any:
    import pyarrow as pa

    ends = np.array([0, 1, 3], np.int32)
    return pa.StringArray.from_buffers(2, pa.py_buffer(ends), pa.py_buffer(b"a\xff\xfe"))


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (lambda pa: pa.array([0, 2**62], pa.timestamp("us")), "date value out of range"),
        (lambda pa: pa.array([0, 2**62], pa.duration("s")), "Python int too large"),
        (lambda pa: _not_utf8(), "can't decode byte 0xff"),
    ],
)
def test_parquet_with_a_cell_that_is_no_value(
    read_all: Any, tmp_path: Path, column: Any, said: str
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "other": column(pa)}), file)
    with pytest.raises(UserError, match=rf"a.parquet row 2: cannot be read \(.*{said}"):
        read_all(str(file))


def test_parquet_with_a_broken_footer(source_error: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(b"PAR1" + bytes(20) + b"PAR1")
    assert source_error(file).startswith(f"{file}: cannot be read as Parquet (")


def test_csv_is_text(read_all: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('prompt,completion\n1,"two,\nthree"\nnull,\n', encoding="utf-8-sig")
    assert read_all(str(file)) == [
        {"prompt": "1", "completion": "two,\nthree", "where": f"{file} row 1"},
        {"prompt": "null", "completion": "", "where": f"{file} row 2"},
    ]


def test_a_malformed_line_of_csv_is_named(source_error: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("a,b\n1,2\n1,2,3\n")
    assert source_error(file).startswith(f"{file}:3: cannot be read as CSV (")


def test_arrow_folders(read_all: Any, source_error: Any, tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    one, two = tmp_path / "one", tmp_path / "two"
    Dataset.from_list([{"text": "a"}]).save_to_disk(one)
    DatasetDict({"test": Dataset.from_list([{"text": "b"}])}).save_to_disk(two)
    assert read_all(str(one)) == [{"text": "a", "where": f"{one} row 1"}]
    assert read_all(str(two), "test") == [{"text": "b", "where": f"{two}[test] row 1"}]
    assert source_error(two) == f"{two}: has no split 'train'; it has test"


def test_a_hub_data_set(read_all: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        return datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_all("some/set", "test", "v1")[1] == {"text": "b", "where": "some/set[test] row 2"}
    assert read_all("some/set/main")[0]["where"] == "some/set/main[train] row 1"
    assert asked == [
        (("some/set",), {"split": "test", "revision": "v1"}),
        (("some/set", "main"), {"split": "train", "revision": None}),
    ]


def test_the_same_records_have_the_same_tokens_in_every_kind_of_file(
    make_tokenizer: Any, write_parquet: Any, tmp_path: Path
) -> None:
    """A table adds nulls to objects that differ in their keys: nobody wrote them."""
    from datasets import Dataset

    from train.data.chat import RecordReader, Renderer
    from train.data.sources import open_source

    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in CALLS))
    table = write_parquet(tmp_path / "a.parquet", CALLS)
    Dataset.from_list(CALLS).save_to_disk(tmp_path / "arrow")
    renderer = Renderer(RecordReader(), make_tokenizer(TEMPLATE))
    texts = [
        [renderer.render(source[number]) for number in range(2)]
        for source in map(open_source, map(str, (lines, table, tmp_path / "arrow")))
    ]
    assert texts[0] == texts[1] == texts[2]
    assert '"b": [1, null]}' in texts[0][0][0].text
    assert '{"city": "Oslo"}' in texts[0][1][0].text


def test_a_null_that_a_line_has_stays(make_tokenizer: Any) -> None:
    from train.data.chat import RecordReader, Renderer

    turn = {"role": "assistant", "content": "", "tool_calls": [
        {"function": {"name": "add", "arguments": {"a": None}}}
    ]}  # fmt: skip
    renderer = Renderer(RecordReader(), make_tokenizer(TEMPLATE))
    [rendered] = renderer.render({"messages": [{"role": "user", "content": "?"}, turn]})
    assert '"arguments": {"a": null}' in rendered.text


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_that_changed_while_its_time_stayed_is_read_anew(
    read_all: Any, write_parquet: Any, tmp_path: Path, kind: str
) -> None:
    """As after rsync -t, cp -p or tar; the size stays too."""
    file = tmp_path / f"a.{kind}"

    def write(answer: str) -> None:
        if kind == "csv":
            file.write_text(f"prompt,completion\n1+1=,{answer}\n")
        else:
            write_parquet(file, [{"prompt": "1+1=", "completion": answer}])
        os.utime(file, (1e9, 1e9))

    for answer in ("2", "3"):
        write(answer)
        assert [record["completion"] for record in read_all(str(file))] == [answer]


def test_csv_with_a_name_that_is_too_long(source_error: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("t" * 200_000 + "\na\n")
    assert source_error(file).startswith(f"{file}:1: is no line of column names (field larger")
