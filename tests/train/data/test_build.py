"""From settings to both sides' examples."""

import json
from pathlib import Path
from typing import Any

import pytest

from train.data import Examples, build_datasets
from train.errors import UserError

DEFAULTS: dict[str, Any] = {
    "vocab_size": 300,
    "seed": 0,
    "eval": None,
    "split": "train",
    "eval_split": None,
    "revision": None,
    "columns": {},
    "eval_fraction": 0.2,
    "max_length": 64,
    "overlong": "drop",
    "limit": None,
    "eval_limit": None,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Twenty records, and two more that are equal to the first one."""
    path = tmp_path / "a.jsonl"
    texts = [f"text {i}" for i in range(20)] + ["text 0"] * 2
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def _texts(examples: Examples | None, tokenizer: Any) -> list[str]:
    assert examples is not None
    ids = [examples[at][0] for at in range(len(examples))]
    return [tokenizer.decode(i, skip_special_tokens=True) for i in ids]


def _build(tokenizer: Any, train: Path | str, **options: Any) -> Any:
    return build_datasets(tokenizer=tokenizer, train=str(train), **DEFAULTS | options)


@pytest.mark.parametrize("seed", range(6))
def test_a_share_is_split_off(tokenizer: Any, file: Path, seed: int) -> None:
    learned, held_out, reports = _build(tokenizer, file, seed=seed)
    sides = _texts(learned, tokenizer), _texts(held_out, tokenizer)
    assert sorted(sides[0] + sides[1]) == sorted([f"text {i}" for i in range(20)] + ["text 0"] * 2)
    assert set(sides[0]).isdisjoint(sides[1]), "equal records stay together"
    assert len(sides[1]) in range(4, 7)
    assert [str(r).partition(":")[0] for r in reports] == ["training data", "held-out data"]
    again = _build(tokenizer, file, seed=seed)
    assert _texts(again[1], tokenizer) == sides[1]


def test_the_seed_decides_what_is_split_off(tokenizer: Any, file: Path) -> None:
    held_out = {tuple(_texts(_build(tokenizer, file, seed=s)[1], tokenizer)) for s in range(5)}
    assert len(held_out) > 2


def test_a_small_share_is_at_least_one_record(tokenizer: Any, file: Path) -> None:
    for seed in range(5):
        _, held_out, _ = _build(tokenizer, file, eval_fraction=0.001, seed=seed)
        assert len(set(_texts(held_out, tokenizer))) == 1


def test_no_share(tokenizer: Any, file: Path) -> None:
    learned, held_out, reports = _build(tokenizer, file, eval_fraction=0)
    assert len(learned) == 22
    assert held_out is None
    assert len(reports) == 1


def test_the_whole_as_a_share(tokenizer: Any, file: Path) -> None:
    with pytest.raises(UserError, match=r"nothing is left to train on of 22 records; lower data"):
        _build(tokenizer, file, eval_fraction=1)


def test_limits_take_a_sample(tokenizer: Any, file: Path) -> None:
    learned, held_out, _ = _build(tokenizer, file, limit=5, eval_limit=2)
    assert (len(learned), len(held_out)) == (5, 2)
    whole, whole_held_out, _ = _build(tokenizer, file)
    sample = _texts(learned, tokenizer)
    assert set(sample) < set(_texts(whole, tokenizer))
    assert sample != _texts(whole, tokenizer)[:5]
    assert set(_texts(held_out, tokenizer)) < set(_texts(whole_held_out, tokenizer))


def test_held_out_data_of_its_own(tokenizer: Any, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.jsonl"
    other.write_text('{"text": "other"}\n')
    learned, held_out, _ = _build(tokenizer, file, eval=str(other), revision="v1")
    assert len(learned) == 22
    assert _texts(held_out, tokenizer) == ["other"]


def test_columns(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "1+1=", "a": "2"}\n')
    columns = {"prompt": "q", "completion": "a"}
    learned, _, _ = _build(tokenizer, path, columns=columns, eval_fraction=0)
    assert learned.target.tolist() == [False] * 4 + [True] * 2


def test_a_hub_data_set_with_two_splits(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        asked.append((*args, kwargs["split"], kwargs["revision"]))
        return datasets.Dataset.from_list([{"text": kwargs["split"]}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    learned, held_out, _ = _build(tokenizer, "some/set", eval_split="test", revision="v1")
    assert _texts(learned, tokenizer) == ["train"]
    assert _texts(held_out, tokenizer) == ["test"]
    _build(tokenizer, "some/set", eval="some/other", revision="v1")
    assert asked == [
        ("some/set", "train", "v1"),
        ("some/set", "test", "v1"),
        ("some/set", "train", "v1"),
        ("some/other", "train", None),
    ]
    with pytest.raises(UserError, match=r"data.eval: some/set is trained on"):
        _build(tokenizer, "some/set", eval="some/set")


def test_the_standard_library(tokenizer: Any, stdlib: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.data.build.load_stdlib", lambda fraction: stdlib)
    options = {"max_length": 512, "limit": 20, "eval_limit": 10}
    learned, held_out, reports = _build(tokenizer, "python-stdlib", **options)
    assert (len(learned), len(held_out)) == (20, 10)
    assert all("Complete this Python function" in text for text in _texts(learned, tokenizer))
    assert reports[0].dropped > 0


def test_the_standard_library_beside_a_file(
    tokenizer: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load_stdlib(fraction: float) -> Any:
        asked.append(fraction)
        return ([{"text": "l", "where": "1"}], [{"text": "h", "where": "2"}] if fraction else [])

    monkeypatch.setattr("train.data.build.load_stdlib", load_stdlib)
    learned, held_out, _ = _build(tokenizer, file, eval="python-stdlib")
    assert (len(learned), _texts(held_out, tokenizer)) == (22, ["h"])
    # Nothing need be kept from training where something else is held out.
    learned, held_out, _ = _build(tokenizer, "python-stdlib", eval=str(file))
    assert (_texts(learned, tokenizer), len(held_out)) == (["l"], 22)
    _, held_out, _ = _build(tokenizer, "python-stdlib", eval_fraction=0)
    assert held_out is None
    assert asked == [0.2, 0, 0]
    with pytest.raises(UserError, match=r"nothing is left to hold out; change data\.eval"):
        _build(tokenizer, file, eval="python-stdlib", eval_fraction=0)


@pytest.mark.parametrize("eval", [None, "python-stdlib"])
def test_splits_are_of_hub_data_sets(tokenizer: Any, file: Path, eval: str | None) -> None:
    with pytest.raises(UserError, match=r"data.eval_split: .* has no splits; name held-out data"):
        _build(tokenizer, file, eval=eval, eval_split="test")


def test_the_same_file_twice(tokenizer: Any, file: Path) -> None:
    with pytest.raises(UserError, match=r"data.eval: .* is trained on; name other data"):
        _build(tokenizer, file, eval=str(file))
