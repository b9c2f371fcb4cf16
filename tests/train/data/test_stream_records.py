"""Records come in order, without end, to each process its own."""

import json
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train.config.data import Source
from train.data.stream_records import RawRecords, Shard
from train.errors import UserError


def test_lines_are_repeated_and_shared(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": str(n)}) + "\n" for n in range(3)))
    source = Source(path=str(file))
    whole = [where for where, _ in islice(RawRecords(source, Shard()), 7)]
    assert whole == [f"{file}:{n}" for n in (1, 2, 3, 1, 2, 3, 1)]
    second = [where for where, _ in islice(RawRecords(source, Shard(1, 2)), 3)]
    assert second == [f"{file}:2"] * 3


def test_a_row_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    when = pa.array([0, 2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["a", "b"], "when": when}), file)
    with pytest.raises(UserError, match=r"a.parquet row \d: cannot be read \(.*out of range"):
        list(islice(RawRecords(Source(path=str(file)), Shard()), 2))
