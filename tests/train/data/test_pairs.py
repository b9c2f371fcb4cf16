"""Pairs as one example: both answers, the longer one's length, and where they are learned."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.config.data import DataSection
from train.data.datasets import DataContext, build_datasets
from train.data.pairs import side_of
from train.data.splits import Datasets
from train.errors import DataError, UserError

ROWS = [  # With their ends 4 and 5, 9 and 6, and 12 tokens of a prompt alone.
    {"prompt": "12", "chosen": "3", "rejected": "45"},
    {"prompt": "1", "chosen": "2345678", "rejected": "2349"},
    {"prompt": "0123456789ab", "chosen": "c", "rejected": "d"},
]


@pytest.fixture
def build(tokenizer: Any, tmp_path: Path) -> Callable[..., Datasets]:
    def build(*rows: Any, **options: Any) -> Datasets:
        file = tmp_path / "pairs.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {"eval_fraction": 0, "max_length": 16, "format": "preference"} | options
        section = DataSection(train=str(file), **settings)
        context = DataContext(tokenizer, 300, 0, tmp_path / "cache", pairs=True)
        return build_datasets(section, context)

    return build


def _text(tokenizer: Any, ids: Any) -> str:
    text: str = tokenizer.decode(np.asarray(ids))
    return text.replace("<pad>", "_").replace("<e>", "E")


def test_a_pair_is_one_example_of_two_answers(build: Any, tokenizer: Any) -> None:
    split = build(*ROWS).train
    assert str(split).startswith("training data: 3 pairs, 52 tokens (22 trained on)")
    assert split.lengths.tolist() == [5, 9, 14]
    assert split.sizes.tolist() == [[4, 5], [9, 6], [14, 14]]
    pair = split.examples[0]
    assert [_text(tokenizer, side) for side in pair.tokens] == ["123E_", "1245E"]
    assert pair.loss_mask.astype(int).tolist() == [[0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert _text(tokenizer, side_of(pair, 0).tokens) == "123E"


@pytest.mark.parametrize("packing", ["none", "bucketed", "packed"])
def test_both_answers_are_in_the_same_row(build: Any, tokenizer: Any, packing: str) -> None:
    split = build(*ROWS, packing=packing).train
    batch = split.batches(3, 0).eval_batch(0)
    length = 14 if packing == "bucketed" else 16
    assert batch["tokens"].shape == (3, 2, length)
    texts = [[_text(tokenizer, side) for side in row] for row in batch["tokens"]]
    if packing != "packed":
        assert texts[1] == ["12345678E".ljust(length, "_"), "12349E".ljust(length, "_")]
        return
    assert texts[1] == ["12345678E123E___", "12349E___1245E__"]
    assert batch["segment_ids"][1].tolist() == [[1] * 9 + [2] * 5 + [0] * 2] * 2
    assert batch["positions"][1, 1].tolist() == [*range(9), *range(5), 0, 0]
    assert split.rows.num_rows == 2


def test_batches_have_the_references_values_at_their_targets(build: Any) -> None:
    split = build(*ROWS, packing="packed").train
    values = [np.full((2, length), length, np.float32) for length in split.lengths]
    batch = split.batches(2, 0, values).eval_batch(0)
    assert batch["reference"].dtype == np.float32
    assert batch["reference"][1].tolist() == [[9] * 9 + [5] * 5 + [0] * 2] * 2


def test_tokens_are_counted_without_padding(build: Any) -> None:
    batches = build(*ROWS).train.batches(3, 0)
    assert batches.num_tokens(0) == 52


@pytest.mark.parametrize(
    ("overlong", "max_length", "sizes"),
    [
        ("drop", 9, [[4, 5], [9, 6]]),
        ("drop", 8, [[4, 5]]),
        ("truncate", 8, [[4, 5], [8, 6]]),
        ("truncate", 5, [[4, 5], [5, 5]]),
        ("truncate", 4, [[4, 4]]),  # The second pair's answers begin alike.
    ],
)
def test_both_answers_are_cut_by_the_same_rule(
    build: Any, overlong: str, max_length: int, sizes: list[list[int]]
) -> None:
    split = build(*ROWS, overlong=overlong, max_length=max_length).train
    assert split.sizes.tolist() == sizes
    assert f"dropped as over {max_length} tokens" in str(split)
    weights = split.batches(1, 0).eval_batch(0)["weights"]
    assert (weights.sum(-1) > 0).all()


def test_pairs_of_one_prompt_are_in_one_split(build: Any, tokenizer: Any) -> None:
    rows = [
        {"prompt": f"{n}:", "chosen": f"{m}", "rejected": f"x{m}"} for n in range(9) for m in "ab"
    ]
    made = build(*rows, eval_fraction=0.3)
    prompts = [
        {_text(tokenizer, split.examples[n].tokens[0, :2]) for n in range(len(split.lengths))}
        for split in made.splits
    ]
    assert prompts[0].isdisjoint(prompts[1])
    assert sum(len(split.lengths) for split in made.splits) == 18


FAULTS = [
    ({"text": "x"}, None, "is not a preference pair, which needs chosen and rejected"),
    ({"prompt": "1", "chosen": "2", "rejected": "2"}, "preference", "has equal answers"),
    ({"prompt": "1", "chosen": "", "rejected": "2"}, "preference", "has an empty answer in chosen"),
    (ROWS[2] | {"chosen": "1" * 9}, "preference", "22 tokens, over data.max_length 16; raise it"),
]


@pytest.mark.parametrize(("row", "format", "message"), FAULTS)
def test_a_fault_names_its_line(build: Any, row: Any, format: str | None, message: str) -> None:
    template_free = [{"prompt": "1", "chosen": "2", "rejected": "3"}] if format else []
    with pytest.raises(UserError, match=rf"pairs.jsonl:{len(template_free) + 1}: .*{message}"):
        build(*template_free, row, format=format, overlong="error")
    with pytest.raises(DataError) as caught:
        build(*template_free, row, format=format, overlong="error", on_error="report")
    assert len(caught.value.lines) == 1


def test_prompts_that_fill_the_row_leave_no_pair(build: Any) -> None:
    with pytest.raises(UserError, match=r"no example is left \(1 over data.max_length 8\)"):
        build(ROWS[2], max_length=8, overlong="truncate")
