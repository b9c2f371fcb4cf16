"""Prompts of the data: what stands before the first answer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.config.data import DataSection
from train.data.datasets import DataContext, build_datasets
from train.data.prompts import first_prompts


def test_the_first_prompts_are_taken_once_each(
    make_tokenizer: Callable[..., Any], turns: Any, tmp_path: Path
) -> None:
    import json

    tokenizer = make_tokenizer()
    records = [{"text": "a text that is learned as a whole"}]
    for question in ("first", "first", "a question that is much too long", "third", "fourth"):
        records.append({"messages": turns(f"u:{question}", "a:x", "u:and?", "a:y")})
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = DataSection(train=str(file), eval_fraction=0)
    datasets = build_datasets(data, DataContext(tokenizer, 300, 0, tmp_path / "cache"))
    prompts = first_prompts(datasets.train, most=20)
    assert [tokenizer.decode(ids) for ids in prompts] == ["u:first<e>\na:", "u:third<e>\na:"]
    assert first_prompts(datasets.train, most=0) == []
