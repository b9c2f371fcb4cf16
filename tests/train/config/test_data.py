"""Sources, what they take from the section, and settings that exclude each other."""

from typing import Any

import pytest
from pydantic import ValidationError

from train.config.data import FIELDS, DataSection


def _data(**keys: Any) -> DataSection:
    return DataSection.model_validate({"train": "a.jsonl", **keys})


@pytest.mark.parametrize(
    ("train", "paths"),
    [
        ("a.jsonl", ["a.jsonl"]),
        (["a.jsonl", "b.csv"], ["a.jsonl", "b.csv"]),
        (["a.jsonl", {"path": "b.csv", "weight": 2}], ["a.jsonl", "b.csv"]),
        ({"path": "some/set", "revision": "v1"}, ["some/set"]),
    ],
)
def test_a_source_is_a_path_or_a_section_alone_or_in_a_list(train: Any, paths: list[str]) -> None:
    data = _data(train=train, revision="v2", split="x", columns={"text": "t"})
    sources = data.train_sources()
    assert [source.path for source in sources] == paths
    assert {source.split for source in sources} == {"x"}
    assert {source.revision for source in sources} == ({"v1"} if paths == ["some/set"] else {"v2"})
    assert all(source.columns == {"text": "t"} for source in sources)


def test_the_columns_of_a_source_replace_those_of_the_section() -> None:
    (source,) = _data(train={"path": "a", "columns": {}}, columns={"text": "t"}).train_sources()
    assert source.columns == {}


def test_eval_sources_are_named_or_are_another_split_of_the_training_data() -> None:
    assert _data(eval=None).eval_sources() == ()
    data = _data(train=["a/b", {"path": "c/d", "split": "big"}], eval_split="test", revision="v1")
    assert [(s.path, s.split, s.revision) for s in data.eval_sources()] == [
        ("a/b", "test", "v1"),
        ("c/d", "test", "v1"),
    ]
    data = _data(train="a/b", eval=["a/b", "e.jsonl"], revision="v1")
    assert [(s.path, s.split, s.revision) for s in data.eval_sources()] == [
        ("a/b", "train", "v1"),
        ("e.jsonl", "train", None),  # another repository has no such revision
    ]


def test_unknown_fields_are_refused_with_those_that_are_known() -> None:
    with pytest.raises(ValidationError, match=r"unknown field 'question'; known fields: messages"):
        _data(columns={"question": "q"})
    assert _data(columns=dict.fromkeys(FIELDS, "c")).columns.keys() == set(FIELDS)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"packing": "bucketed", "eval_fraction": 0}, "streaming takes packing none or packed"),
        ({"limit": 5, "eval_fraction": 0}, "and no limit"),
        ({}, "nothing is split off a stream: set eval, or set eval_fraction to 0"),
    ],
)
def test_a_stream_refuses_what_needs_all_records(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _data(streaming=True, **keys)


@pytest.mark.parametrize("keys", [{"eval": "e"}, {"eval_split": "test"}, {"eval_fraction": 0}])
def test_a_stream_takes_eval_data_of_its_own_or_none(keys: dict[str, Any]) -> None:
    assert _data(streaming=True, packing="packed", **keys).streaming
