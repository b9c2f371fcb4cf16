"""Tokenised examples on disk: what is stored, found again, and reported as a fault."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.data.chat import RecordReader
from train.data.sources import open_source
from train.data.token_store import TokenStore, open_store
from train.data.tokenize import encode_batch
from train.errors import UserError

GOOD = {"prompt": "1+1=", "completion": "2"}


@pytest.fixture
def tokenizer(make_tokenizer: Any) -> Any:
    return make_tokenizer(None)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: Any, name: str = "a.jsonl") -> Path:
        file = tmp_path / name
        raw = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines]
        file.write_bytes(b"\n".join(raw) + b"\n")
        return file

    return write


def _store(file: Path, tokenizer: Any, stop: bool = False, **reading: Any) -> TokenStore:
    rows = open_source(str(file))
    return open_store(rows, tokenizer, RecordReader(**reading), file.parent / "cache", stop=stop)


def test_examples_and_what_is_known_of_them(write: Any, tokenizer: Any) -> None:
    made = _store(write(GOOD, {"text": "ab"}, GOOD), tokenizer)
    assert len(made) == 3
    assert made[0].loss_mask.tolist() == [False] * 4 + [True] * 2
    assert made[1].loss_mask.tolist() == [True] * 3
    assert made.index["record"].tolist() == [0, 1, 2]
    assert made.index["length"].tolist() == [6, 3, 6]
    assert made.index["num_loss_tokens"].tolist() == [2, 3, 2]
    assert made.index["first_loss_token"].tolist() == [4, 1, 4]  # Nothing precedes a first token.
    assert made.index["highest_token"].tolist() == [int(made[i].tokens.max()) for i in range(3)]
    assert made.index["digest"][0] == made.index["digest"][2] != made.index["digest"][1]
    assert isinstance(made.tokens.base, np.memmap), "it is not held in memory"


def test_long_records_are_tokenised_few_at_a_time(
    write: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def encoding(texts: list[Any], tokenizer: Any) -> Any:
        sizes.append(sum(len(text.text) for text in texts))
        return encode_batch(texts, tokenizer)

    monkeypatch.setattr("train.data.token_store.encode_batch", encoding)
    monkeypatch.setattr("train.data.token_store._CHARACTERS", 100)
    made = _store(write(*({"text": "x" * 60} for _ in range(7)), GOOD), tokenizer)
    assert made.index["length"].tolist() == [61] * 7 + [6]
    assert sizes == [120, 120, 120, 60 + 5]


def test_it_is_tokenised_once(
    write: Any, make_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer(None)
    file = write(GOOD, GOOD)
    _store(file, tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr("train.data.token_store.encode_batch", None)
        assert len(_store(file, tokenizer)) == 2
        moved = file.rename(file.with_name("moved.jsonl"))
        assert _store(moved, tokenizer).where(1) == f"{moved}:2"
        with pytest.raises(TypeError):
            _store(moved, tokenizer, loss_on="everything")
        with pytest.raises(TypeError):
            _store(moved, make_tokenizer(None, adds_bos=True))
        with pytest.raises(TypeError):
            _store(moved, make_tokenizer("{{ messages }}"), format="completion")
        with pytest.raises(TypeError):
            _store(write(GOOD, {"text": "b"}), tokenizer)
    assert not list(file.parent.rglob("*.new"))


def test_work_that_is_cut_off_leaves_nothing(
    write: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.data.token_store._BATCH", 1)
    file = write(GOOD, GOOD)

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_store(open_source(str(file)), tokenizer, RecordReader(), file.parent / "cache", stop)
    assert list((file.parent / "cache").iterdir()) == []
    assert len(_store(file, tokenizer)) == 2


FAULTS = [
    (b'{"text" 1}', "is not JSON"),
    (b"", "is blank; delete the line"),
    (b"3", "is 3, not an object"),
    (b'{"text": "\xff"}', "is not UTF-8"),
    ({"text": 3}, "text must be a string, not int"),
    ({"text": None}, "needs messages, prompt and completion"),
    ({"prompt": "x"}, "has no completion"),
    ({"messages": []}, "must be a list of turns"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "has the role 'wizard'"),
    ({"messages": [{"role": "user", "content": None}]}, "content must be a string, not null"),
    ({"messages": [{"role": "user", "content": "hi"}]}, "the tokenizer has no chat template"),
    ({"text": ""}, "has no tokens to train on"),
]


@pytest.mark.parametrize(("line", "said"), FAULTS)
def test_a_fault_is_told_with_its_line(write: Any, tokenizer: Any, line: Any, said: str) -> None:
    file = write(GOOD, line, GOOD)
    with pytest.raises(UserError) as caught:
        _store(file, tokenizer, stop=True)
    assert str(caught.value).startswith(f"{file}:2: ")
    assert said in str(caught.value)


def test_faults_are_collected_and_found_again(write: Any, tokenizer: Any) -> None:
    file = write(GOOD, *(line for line, _ in FAULTS), GOOD)
    for _ in range(2):
        made = _store(file, tokenizer)
        assert len(made) == 2
        assert [record for record, _ in made.faults] == list(range(1, len(FAULTS) + 1))
        for (_, text), (_, said) in zip(made.faults, FAULTS, strict=True):
            assert said in text


def test_nothing_but_faults(write: Any, tokenizer: Any) -> None:
    made = _store(write({"text": ""}), tokenizer)
    assert (len(made), len(made.faults)) == (0, 1)


def test_a_pair_is_two_examples_of_one_record(write: Any, tokenizer: Any) -> None:
    made = _store(write({"prompt": "1", "chosen": "2", "rejected": "34"}, GOOD), tokenizer)
    assert made.index["record"].tolist() == [0, 0, 1]
    assert made.index["length"].tolist() == [3, 4, 6]


def test_what_is_read_of_the_time_is_part_of_the_digest(
    write: Any, make_tokenizer: Any, tmp_path: Path
) -> None:
    dated = (
        "{% for m in messages %}{{ m['role'][0] }}:{{ strftime_now('%d') }}{{ m['content'] }}<e>"
        "{% endfor %}{% if add_generation_prompt %}a:{{ strftime_now('%d') }}{% endif %}"
    )
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    file, tokenizer = write({"messages": turns}), make_tokenizer(dated)
    days = [datetime(2024, 7, 9, 5), datetime(2024, 7, 9, 6), datetime(2024, 7, 10, 5)]
    stores = [_store(file, tokenizer, now=now) for now in days]
    texts = [tokenizer.decode(store[0].tokens) for store in stores]
    assert texts == ["u:091<e>a:092<e>"] * 2 + ["u:101<e>a:102<e>"]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_how_records_were_understood_is_kept(write: Any, tokenizer: Any) -> None:
    file = write(GOOD | {"id": 3}, {"text": "ab"}, {"text": "cd"})
    for _ in range(2):
        made = _store(file, tokenizer)
        assert made.understood == [
            ((("text", ("text",), ()), False), 2),
            ((("completion", ("prompt", "completion"), ("id",)), False), 1),
        ]


@pytest.mark.parametrize("name", ["tokens", "index", "faults.json", "manifest.json"])
@pytest.mark.parametrize("change", ["zeros", "cut", "deleted"])
def test_a_damaged_cache_is_made_anew(
    write: Any, tokenizer: Any, capsys: pytest.CaptureFixture[str], name: str, change: str
) -> None:
    file = write(GOOD, {"text": "ab"}, GOOD)
    tokens = _store(file, tokenizer).tokens.tolist()
    (damaged,) = (file.parent / "cache").rglob(name)
    content = damaged.read_bytes()
    damaged.unlink()
    if change != "deleted":
        damaged.write_bytes(bytes(len(content)) if change == "zeros" else content[:-4])
    capsys.readouterr()
    for line in ("tokenised anew", ""):
        again = _store(file, tokenizer)
        assert again.tokens.tolist() == tokens
        assert len(again) == 3
        assert line in capsys.readouterr().err
    assert len(list((file.parent / "cache").iterdir())) == 1
