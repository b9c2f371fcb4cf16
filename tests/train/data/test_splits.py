"""What a split reports of its examples, of single answers and of pairs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.config.data import DataSection
from train.data.datasets import DataContext, build_datasets
from train.data.splits import Split

ROWS = [
    {"prompt": "12", "completion": "3", "chosen": "3", "rejected": "456"},
    {"prompt": "1", "completion": "23456", "chosen": "23456", "rejected": "3"},
]


@pytest.fixture
def build(tokenizer: Any, tmp_path: Path) -> Callable[..., Split]:
    def build(pairs: bool, **options: Any) -> Split:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        kind = "preference" if pairs else "completion"
        section = DataSection(train=str(file), eval_fraction=0, format=kind, **options)
        context = DataContext(tokenizer, 300, 0, tmp_path / "cache", pairs=pairs)
        return build_datasets(section, context).train

    return build


@pytest.mark.parametrize(
    ("pairs", "sizes", "text"),
    [
        (False, [[4], [5]], "2 examples, 9 tokens (6 trained on), 1 cut to 5 tokens"),
        (True, [[4, 5], [5, 3]], "2 pairs, 17 tokens (11 trained on), 2 cut to 5 tokens"),
    ],
)
def test_tokens_are_those_that_are_used(build: Any, pairs: bool, sizes: Any, text: str) -> None:
    split = build(pairs, max_length=5, overlong="truncate")
    assert split.sizes.tolist() == sizes
    assert split.lengths.tolist() == [max(size) for size in sizes]
    assert str(split) == f"training data: {text}"


@pytest.mark.parametrize(("pairs", "padding"), [(False, 1 - 11 / 32), (True, 1 - 20 / 64)])
def test_padding_is_the_share_of_all_rows(build: Any, pairs: bool, padding: float) -> None:
    assert build(pairs, max_length=16).padding == pytest.approx(padding)


def test_the_digest_is_that_of_both_answers(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build(True, max_length=16).digest
    assert build(True, max_length=16).digest == before
    for name in ("chosen", "rejected"):
        with monkeypatch.context() as patch:
            patch.setitem(ROWS[0], name, "9")
            assert build(True, max_length=16).digest != before
