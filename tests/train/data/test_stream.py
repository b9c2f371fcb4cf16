"""Streams: rows in a buffer's order, packed on the fly, and their place saved and found again."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.config.data import DataSection
from train.data.datasets import DataContext
from train.data.stream import Stream, preview
from train.data.stream_records import Shard
from train.errors import UserError


@pytest.fixture
def tokenizer(make_tokenizer: Any) -> Any:
    """Without a chat template: prompts and completions are trained on as they are."""
    return make_tokenizer(None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Thirty rows of 3 to 7 tokens."""
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": f"{n:02}", "completion": "x" * (n % 5)} for n in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8-sig")
    return path


def _stream(tokenizer: Any, train: Any, shard: Shard | None = None, **data: Any) -> Stream:
    train = str(train) if isinstance(train, Path) else train
    options = {"max_length": 16, "eval_fraction": 0, "shuffle_buffer": 8} | data
    section = DataSection(train=train, streaming=True, **options)
    context = DataContext(tokenizer, vocab_size=259, seed=0, cache=Path("unused"))
    return Stream(section, context, num_rows=2, shard=shard or Shard())


def _read(stream: Stream, count: int, state: dict[str, Any] | None = None) -> Iterator[Any]:
    """Batches with the states after them."""
    with closing(stream.prefetch(lambda batch: batch)) as iterator:
        if state is not None:
            iterator.set_state(state)
        for _ in range(count):
            yield next(iterator), json.loads(json.dumps(iterator.get_state()))


def _prompts(tokenizer: Any, batches: list[dict[str, np.ndarray]]) -> list[str]:
    """The prompts of padded rows."""
    return [tokenizer.decode(row[:2]) for batch in batches for row in batch["tokens"]]


def test_every_row_comes_once_a_pass_and_the_passes_differ(tokenizer: Any, file: Path) -> None:
    seen = _prompts(tokenizer, [batch for batch, _ in _read(_stream(tokenizer, file), 60)])
    # A buffer of 8 rows goes on from one pass into the next.
    assert sorted(seen) == sorted(f"{n:02}" for n in range(30) for _ in range(4))
    assert seen[:8] != sorted(seen[:8])
    assert set(seen[:8]) == {f"{n:02}" for n in range(8)}
    assert seen[:24] != seen[30:54]


def test_a_packed_row_is_whole_documents(tokenizer: Any, file: Path) -> None:
    for batch, _ in _read(_stream(tokenizer, file, packing="packed"), 20):
        tokens, segments = batch["tokens"], batch["segment_ids"]
        assert batch["num_tokens"].tolist() == np.count_nonzero(segments, axis=1).tolist()
        for row in range(2):
            for number in range(1, segments[row].max() + 1):
                place = segments[row] == number
                n = int(place.sum())
                text = tokenizer.decode(tokens[row][place])
                assert text == text[:2] + "x" * (n - 3) + "<e>"
                assert batch["positions"][row][place].tolist() == list(range(n))
                assert batch["weights"][row][place].tolist() == [0] + [1] * (n - 2) + [0]
                assert (batch["targets"][row][place][:-1] == tokens[row][place][1:]).all()


@pytest.mark.parametrize("packing", ["none", "packed"])
def test_a_stream_goes_on_where_it_was(
    tokenizer: Any, file: Path, tmp_path: Path, packing: str
) -> None:
    other = tmp_path / "b.jsonl"
    other.write_text('{"prompt": "yy", "completion": "z"}\n' * 5)
    sources = [str(file), {"path": str(other), "weight": 0.25}]
    whole = list(_read(_stream(tokenizer, sources, packing=packing), 22))
    for resumed_at in (0, 3, 14):
        state = whole[resumed_at][1]
        again = _read(_stream(tokenizer, sources, packing=packing), 7, state)
        for number, (batch, _) in enumerate(again, resumed_at + 1):
            for key, value in batch.items():
                np.testing.assert_array_equal(value, whole[number][0][key])


def test_processes_share_the_rows(tokenizer: Any, file: Path) -> None:
    shards = [_stream(tokenizer, file, Shard(process, 2), shuffle_buffer=5) for process in range(2)]
    seen = [_prompts(tokenizer, [b for b, _ in _read(shard, 15)]) for shard in shards]
    assert sorted(seen[0]) == sorted(f"{n:02}" for n in range(0, 30, 2) for _ in range(2))
    assert sorted(seen[1]) == sorted(f"{n:02}" for n in range(1, 30, 2) for _ in range(2))


def test_parquet_goes_on_too(tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset

    path = tmp_path / "a.parquet"
    Dataset.from_list([{"text": f"{n:02}"} for n in range(30)]).to_parquet(path)
    whole = list(_read(_stream(tokenizer, path), 40))
    seen = _prompts(tokenizer, [batch for batch, _ in whole[:15]])
    assert len(set(seen)) >= 22  # A window may hold the end of one pass and the next one's start.
    for at, (batch, _) in enumerate(_read(_stream(tokenizer, path), 8, whole[17][1]), 18):
        np.testing.assert_array_equal(batch["tokens"], whole[at][0]["tokens"])


@pytest.mark.parametrize(
    ("overlong", "counts"),
    [("drop", {"kept": 3, "cut": 0, "dropped": 1}), ("truncate", {"kept": 3, "cut": 1})],
)
def test_what_is_too_long_is_counted(
    tokenizer: Any, tmp_path: Path, overlong: str, counts: dict[str, int]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "{"x" * n}"}}\n' for n in (3, 40, 3, 3)))
    stream = _stream(tokenizer, path, overlong=overlong)
    list(_read(stream, 20))
    passes = stream.counts["kept"] / 3
    assert passes == int(passes) > 1
    assert {key: stream.counts[key] / passes for key in counts} == counts
    assert f"{stream.counts['kept']:,} kept" in str(stream)


@pytest.mark.parametrize(
    ("lines", "options", "said"),
    [
        (["{", "{}"], {}, "a.jsonl:1: is not JSON"),
        (['{"text": "x"}', ""], {}, "a.jsonl:2: is blank"),
        (['{"text": ""}'], {}, "a.jsonl:1: has no tokens to train on"),
        (['{"text": "xxx"}'], {"max_length": 2, "overlong": "error"}, "a.jsonl:1: 4 tokens, over"),
        (['{"prompt": "1", "chosen": "2", "rejected": "3"}'], {}, "is a preference pair"),
        ([], {}, "holds no records"),
    ],
)
def test_an_error_names_its_line(
    tokenizer: Any, tmp_path: Path, lines: list[str], options: dict[str, Any], said: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(UserError) as caught:
        list(_read(_stream(tokenizer, path, **options), 1))
    assert said in str(caught.value)


def test_a_stream_of_which_nothing_fits_ends(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.data.stream._IN_VAIN", 200)
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "{"x" * 40}"}}\n' * 3)
    with pytest.raises(
        UserError, match=r"not one of the last 2\d\d records fits data.max_length=16"
    ):
        list(_read(_stream(tokenizer, path, overlong="drop"), 1))


def test_what_cannot_be_streamed(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nx\n")
    with pytest.raises(UserError, match=r"a.csv: cannot be streamed"):
        _stream(tokenizer, tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"eval_fraction": 0.1}, "nothing is split off a stream"),
        ({"packing": "bucketed"}, "streaming takes packing none or packed"),
        ({"limit": 5}, "and no limit"),
    ],
)
def test_settings_that_a_stream_does_not_go_with(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DataSection(train="a.jsonl", streaming=True, **{"eval_fraction": 0} | options)


@pytest.mark.parametrize("kind", ["lines", "table"])
def test_another_number_of_processes_is_refused(
    tokenizer: Any, file: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "table":
        from datasets import Dataset

        rows = [json.loads(line) for line in file.read_text("utf-8-sig").splitlines()]
        file = tmp_path / "a.parquet"
        Dataset.from_list(rows).to_parquet(file)
    half = _stream(tokenizer, file, Shard(0, 2))
    state = [state for _, state in _read(half, 2)][-1]
    assert list(_read(_stream(tokenizer, file, Shard(0, 2)), 1, state))
    with pytest.raises(UserError, match="saved by 2 processes and cannot go on with 1"):
        list(_read(_stream(tokenizer, file), 1, state))


def test_a_token_outside_the_vocabulary_is_refused(tokenizer: Any, file: Path) -> None:
    section = DataSection(train=str(file), streaming=True, eval_fraction=0, max_length=16)
    context = DataContext(tokenizer, vocab_size=9, seed=0, cache=Path("unused"))
    stream = Stream(section, context, num_rows=2, shard=Shard())
    with pytest.raises(UserError, match=r"a.jsonl:\d+: has token \d+, and the model's vocabulary"):
        list(_read(stream, 1))


def test_examples_are_those_of_indexed_data(tokenizer: Any, file: Path, tmp_path: Path) -> None:
    from train.data.datasets import build_datasets

    context = DataContext(tokenizer, vocab_size=259, seed=0, cache=tmp_path)
    options = {"max_length": 5, "overlong": "truncate", "eval_fraction": 0}
    indexed = build_datasets(DataSection(train=str(file), **options), context).train.batches(2, 0)
    names = ("tokens", "targets", "weights")

    def rows(batches: list[Any]) -> set[bytes]:
        return {
            b"".join(batch[name][row].tobytes() for name in names)
            for batch in batches
            for row in range(2)
        }

    streamed = [batch for batch, _ in _read(_stream(tokenizer, file, **options), 60)]
    expected = rows([indexed.eval_batch(number) for number in range(indexed.num_eval_batches)])
    assert len(expected) == 30
    assert rows(streamed) == expected


def test_how_the_beginning_is_understood(tokenizer: Any, file: Path, tmp_path: Path) -> None:
    context = DataContext(tokenizer, vocab_size=259, seed=0, cache=tmp_path)
    section = DataSection(train=str(file), streaming=True, eval_fraction=0)
    assert preview(section, context) == [
        f"the beginning of {file}: 16 records read as completion (columns: prompt, completion), "
        "without the chat template"
    ]
    file.write_text('{"text": 3}\n')
    with pytest.raises(UserError, match=f"{file}:1: text must be a string, not int"):
        preview(section, context)
