"""From settings to the examples of both splits."""

import json
from pathlib import Path
from typing import Any

import pytest

from train.config.data import DataSection, Source
from train.data.datasets import DataContext, build_datasets, build_evals
from train.data.splits import Split
from train.errors import UserError

DEFAULTS: dict[str, Any] = {"eval_fraction": 0.2, "max_length": 64}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Twenty records, and two more that are equal to the first one."""
    path = tmp_path / "a.jsonl"
    texts = [f"text {i}" for i in range(20)] + ["text 0"] * 2
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def _texts(split: Split | None, tokenizer: Any) -> list[str]:
    assert split is not None
    examples = split.examples
    return [
        tokenizer.decode(examples[number].tokens, skip_special_tokens=True)
        for number in range(len(split.lengths))
    ]


@pytest.mark.parametrize("seed", range(6))
def test_a_share_is_split_off(build: Any, tokenizer: Any, file: Path, seed: int) -> None:
    made = build(file, seed)
    texts = [_texts(split, tokenizer) for split in made.splits]
    assert sorted(texts[0] + texts[1]) == sorted([f"text {i}" for i in range(20)] + ["text 0"] * 2)
    assert set(texts[0]).isdisjoint(texts[1]), "equal records stay together"
    assert len(texts[1]) in range(4, 7)
    assert [str(split).partition(":")[0] for split in made.splits] == [
        "training data",
        "evaluation data",
    ]
    assert _texts(build(file, seed).eval, tokenizer) == texts[1]


def test_equal_records_of_two_sources_are_in_one_split(
    build: Any, tokenizer: Any, file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "b.jsonl"
    other.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(10, 30)))
    for seed in range(5):
        trained, evaluated = (
            _texts(split, tokenizer) for split in build([str(file), str(other)], seed).splits
        )
        assert set(trained).isdisjoint(evaluated)
        assert len(trained) + len(evaluated) == 42


def test_a_small_share_is_at_least_one_record(build: Any, tokenizer: Any, file: Path) -> None:
    for seed in range(5):
        assert len(set(_texts(build(file, seed, eval_fraction=0.001).eval, tokenizer))) == 1


def test_no_share(build: Any, file: Path) -> None:
    made = build(file, eval_fraction=0)
    assert len(made.train.lengths) == 22
    assert made.eval is None


def test_the_whole_as_a_share(build: Any, file: Path) -> None:
    with pytest.raises(UserError, match=r"nothing is left to train on of 22 records; lower data"):
        build(file, eval_fraction=1)


def test_limits_take_a_sample(build: Any, tokenizer: Any, file: Path) -> None:
    made, whole = build(file, limit=5, eval_limit=1), build(file)
    sample = _texts(made.train, tokenizer)
    assert (len(sample), len(made.eval.lengths)) == (5, 1)
    assert set(sample) < set(_texts(whole.train, tokenizer))
    assert sample != _texts(whole.train, tokenizer)[:5]
    assert set(_texts(made.eval, tokenizer)) < set(_texts(whole.eval, tokenizer))
    assert "left out by the limit" in str(made.train)


def test_evaluation_data_of_its_own(build: Any, tokenizer: Any, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.jsonl"
    other.write_text('{"text": "other"}\n')
    made = build(file, eval=str(other), revision="v1")
    assert len(made.train.lengths) == 22
    assert _texts(made.eval, tokenizer) == ["other"]


def test_sources_have_settings_and_weights_of_their_own(
    build: Any, tokenizer: Any, file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "b.jsonl"
    other.write_text('{"q": "1+1=", "a": "2"}\n' * 3)
    mapped = {"path": str(other), "weight": 2, "format": "completion"} | {
        "columns": {"prompt": "q", "completion": "a"}
    }
    made = build([str(file), mapped], eval_fraction=0)
    assert _texts(made.train, tokenizer)[-3:] == ["1+1=2"] * 3
    batches = made.train.batches(1, 0)
    assert batches.rows_per_epoch == 22 + 2 * 3
    seen = [batches.batch(step)["tokens"][0].tolist() for step in range(28)]
    assert seen.count(batches.eval_batch(24)["tokens"][0].tolist()) == 6


def test_packed_splits(build: Any, tokenizer: Any, file: Path) -> None:
    made, apart = build(file, packing="packed", max_length=32), build(file)
    assert made.train.rows.num_rows < len(apart.train.lengths)
    assert sorted(_texts(made.train, tokenizer)) == sorted(_texts(apart.train, tokenizer))
    assert f"packed into {made.train.rows.num_rows} rows (" in str(made.train)
    batch = made.train.batches(2, 0).batch(0)
    assert batch["segment_ids"].max() >= 2


def test_a_tokenizer_with_more_tokens_than_the_model(build: Any, file: Path) -> None:
    with pytest.raises(UserError, match=r"tokens up to 258, and the model's vocabulary ends at 9;"):
        build(file, vocab_size=10)


def test_preference_pairs_are_not_for_sft(build: Any, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "1", "chosen": "2", "rejected": "3"}\n')
    with pytest.raises(UserError, match=r"pairs.jsonl:1: is a preference pair"):
        build(path, format="preference")


def test_a_hub_data_set_with_two_splits(
    build: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        asked.append((*args, kwargs["split"], kwargs["revision"]))
        return datasets.Dataset.from_list([{"text": kwargs["split"]}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    made = build("some/set", eval_split="test", revision="v1")
    assert _texts(made.train, tokenizer) == ["train"]
    assert _texts(made.eval, tokenizer) == ["test"]
    build("some/set", eval="some/other", revision="v1")
    assert asked == [
        ("some/set", "train", "v1"),
        ("some/set", "test", "v1"),
        ("some/set", "train", "v1"),
        ("some/other", "train", None),
    ]
    with pytest.raises(UserError, match=r"data.eval: some/set is trained on"):
        build("some/set", eval="some/set")


@pytest.mark.parametrize("every", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_the_standard_library(
    build: Any, tokenizer: Any, stdlib: Any, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    some = (stdlib[0][::every], stdlib[1][:: min(every, 5)])
    monkeypatch.setattr("train.data.datasets.load_stdlib", lambda fraction, name: some)
    made = build("python-stdlib", max_length=512, limit=20, eval_limit=10)
    assert (len(made.train.lengths), len(made.eval.lengths)) == (20, 10)
    assert all("Complete this Python function" in text for text in _texts(made.train, tokenizer))
    assert "dropped as over 512 tokens" in str(made.train)


def test_the_standard_library_beside_a_file(
    build: Any, tokenizer: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load_stdlib(fraction: float, name: str) -> Any:
        asked.append(fraction)
        return ([{"text": "l", "where": "1"}], [{"text": "h", "where": "2"}] if fraction else [])

    monkeypatch.setattr("train.data.datasets.load_stdlib", load_stdlib)
    made = build(file, eval="python-stdlib")
    assert (len(made.train.lengths), _texts(made.eval, tokenizer)) == (22, ["h"])
    # Nothing is split off where evaluation data is named.
    made = build("python-stdlib", eval=str(file))
    assert (_texts(made.train, tokenizer), len(made.eval.lengths)) == (["l"], 22)
    assert build("python-stdlib", eval_fraction=0).eval is None
    made = build(["python-stdlib", str(file)])
    assert "l" in _texts(made.train, tokenizer)
    assert "h" in _texts(made.eval, tokenizer)
    assert asked == [0.2, 0, 0, 0.2]
    with pytest.raises(UserError, match=r"no evaluation data is left; change data\.eval"):
        build(file, eval="python-stdlib", eval_fraction=0)


@pytest.mark.parametrize("eval", [None, "python-stdlib"])
def test_splits_are_of_hub_data_sets(build: Any, file: Path, eval: str | None) -> None:
    with pytest.raises(UserError, match=r"data.eval_split: .* has no splits; name evaluation data"):
        build(file, eval=eval, eval_split="test")


def test_the_same_file_twice(build: Any, file: Path) -> None:
    with pytest.raises(UserError, match=r"data.eval: .* is trained on; name other data"):
        build(file, eval=str(file))


def test_only_the_evaluation_data_of_a_stream_is_tokenised(
    tokenizer: Any, file: Path, tmp_path: Path, cache: Path
) -> None:
    held = tmp_path / "b.jsonl"
    held.write_text('{"text": "other"}\n')
    context = DataContext(tokenizer, 300, 0, cache)
    section = DataSection(train="no/where", streaming=True, eval=str(held), max_length=64)
    assert _texts(build_evals(section, context)[""], tokenizer) == ["other"]
    section = DataSection(train=str(file), streaming=True, eval_fraction=0)
    assert build_evals(section, context) == {}
    section = DataSection(train=str(file), streaming=True, eval=str(file))
    with pytest.raises(UserError, match="is trained on"):
        build_evals(section, context)


def test_the_split_does_not_depend_on_the_chat_template(
    make_tokenizer: Any, cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "talks.jsonl"
    talks = [[("user", "q"), ("assistant", f"answer {n}")] for n in range(20)]
    rows = [{"messages": [{"role": r, "content": c} for r, c in talk]} for talk in talks]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = DataSection(train=str(path), **DEFAULTS)
    held = []
    for head in ("", "On Monday. "):
        template = head + (
            "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}<e>{% endfor %}"
            "{% if add_generation_prompt %}a:{% endif %}"
        )
        tokenizer = make_tokenizer(template)
        made = build_datasets(section, DataContext(tokenizer, 300, 0, cache))
        held.append([text.removeprefix(head) for text in _texts(made.eval, tokenizer)])
    assert held[0] == held[1]


def test_evaluation_data_by_name_is_beside_what_is_split_off(
    tokenizer: Any, file: Path, tmp_path: Path, cache: Path
) -> None:
    other = tmp_path / "b.jsonl"
    other.write_text('{"text": "other"}\n{"text": "more"}\n')
    section = DataSection(train=str(file), **DEFAULTS)
    plain = build_datasets(section, DataContext(tokenizer, 300, 0, cache))
    sets = {"b": [section.fill(Source(path=str(other)))]}
    context = DataContext(tokenizer, 300, 0, cache, eval_sets=sets)
    made = build_datasets(section, context)
    assert [split.digest for split in made.splits[:2]] == [split.digest for split in plain.splits]
    assert _texts(made.evals["b"], tokenizer) == ["other", "more"]
    assert str(made.evals["b"]).startswith("evaluation data b: 2 examples")
    streamed = section.model_copy(update={"streaming": True, "eval_fraction": 0})
    assert _texts(build_evals(streamed, context)["b"], tokenizer) == ["other", "more"]
    trained = DataContext(tokenizer, 300, 0, cache, eval_sets={"b": [section.train_sources()[0]]})
    with pytest.raises(UserError, match=r"evaluation\.data\.b: .* is trained on; name other data"):
        build_datasets(section, trained)
