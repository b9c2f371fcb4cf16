"""Examples that are too long are dropped, cut or refused, and what is wrong is one line a kind."""

import json
from pathlib import Path
from typing import Any

import pytest

from train.errors import DataError, UserError

RECORDS = [  # 5, 10, 10 and 3 tokens with the end
    {"prompt": "12", "completion": "34"},
    {"prompt": "1", "completion": "23456789"},
    {"prompt": "12345678", "completion": "9"},
    {"prompt": "1", "completion": "2"},
]


@pytest.fixture
def long(tmp_path: Path) -> Path:
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in RECORDS))
    return path


def test_what_is_too_long_is_dropped_and_reported(build: Any, long: Path) -> None:
    split = build(long, format="completion", max_length=5, eval_fraction=0).train
    assert split.lengths.tolist() == [5, 3]
    assert str(split) == (
        "training data: 2 examples, 8 tokens (5 trained on), 2 dropped as over 5 tokens"
    )


def test_what_is_too_long_is_cut_where_something_is_left_to_learn(build: Any, long: Path) -> None:
    split = build(
        long, format="completion", max_length=5, eval_fraction=0, overlong="truncate"
    ).train
    assert split.lengths.tolist() == [5, 5, 3]
    assert split.batches(3, 0).eval_batch(0)["weights"][1].tolist() == [1, 1, 1, 1, 0]
    assert str(split) == (
        "training data: 3 examples, 13 tokens (9 trained on), 1 dropped as over 5 tokens, "
        "1 cut to 5 tokens"
    )


def test_what_is_too_long_is_an_error(build: Any, long: Path) -> None:
    options = {"format": "completion", "max_length": 5, "eval_fraction": 0, "overlong": "error"}
    with pytest.raises(UserError) as caught:
        build(long, **options)
    assert str(caught.value).startswith(f"{long}:2: 10 tokens, over data.max_length 5; raise it")
    with pytest.raises(DataError) as several:
        build(long, **options, on_error="report")
    assert several.value.lines == [str(caught.value)]
    assert str(caught.value).endswith(f"(the same: {long}:3)")


def test_faults_of_one_kind_are_one_line(build: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("[]\n" * 60)
    with pytest.raises(UserError, match=rf"{path}:1: is a list"):
        build(path)
    with pytest.raises(DataError) as caught:
        build(path, on_error="report")
    [line] = caught.value.lines
    assert line.endswith(f"(the same: {path}:2, {path}:3 and 57 more)")


def test_nothing_fits(build: Any, long: Path) -> None:
    with pytest.raises(UserError, match=r"training data: no example is left \(4 over data.max_"):
        build(long, format="completion", max_length=2, eval_fraction=0)
