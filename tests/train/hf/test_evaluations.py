"""Results of tasks are kept with a run and written into its card."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from train.config import load_config
from train.errors import UserError
from train.hf.card import model_card
from train.hf.evaluations import add_evaluation, newest_figures, read_evaluations


def _results(value: float, **other: Any) -> dict[str, Any]:
    figures = {
        "alias": "sums",
        "sample_len": 9,
        "exact_match,strict": value,
        "exact_match_stderr,strict": 0.125,
        "acc,none": 0.5,
        "acc_stderr,none": "N/A",
    }
    return {"results": {"sums": figures}, "n-shot": {"sums": 2}, "samples": ["secret"], **other}


def test_a_figure_has_its_filter_and_its_error(tmp_path: Path) -> None:
    run = tmp_path
    add_evaluation(run, 3, _results(0.1))
    add_evaluation(run, 6, _results(0.2))
    add_evaluation(run, 6, _results(0.25))
    assert "secret" not in (tmp_path / "evaluations.jsonl").read_text()
    accuracy, _, early, late = newest_figures(read_evaluations(run))
    assert accuracy == (3, "sums", 2, "acc", 0.5, None)
    assert early == (3, "sums", 2, "exact_match (strict)", 0.1, 0.125)
    assert late == (6, "sums", 2, "exact_match (strict)", 0.25, 0.125)


def test_a_card_shows_all_results_and_indexes_those_of_its_weights(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "of-results"
    run.mkdir()
    add_evaluation(run, 0, _results(0.1))
    add_evaluation(run, 6, _results(0.25))
    config = load_config(write_config())
    card = model_card("mine", config, [], read_evaluations(run), 6)
    _, header, text = card.split("---\n", 2)
    [model] = yaml.safe_load(header)["model-index"]
    [result] = model["results"]
    assert model["name"] == "mine"
    assert result["dataset"] == {"name": "sums (2-shot)", "type": "sums"}
    assert result["metrics"] == [
        {"type": "acc", "name": "acc", "value": 0.5},
        {"type": "exact_match", "name": "exact_match (strict)", "value": 0.25},
    ]
    assert "| sums | 2 | exact_match (strict) | 0 | 0.1000 ± 0.1250 |" in text
    assert "| sums | 2 | acc | 6 | 0.5000 |" in text
    assert "model-index" not in model_card("mine", config, [], read_evaluations(run), 3)
    assert "## Evaluation" not in model_card("mine", config, [])


def test_the_hub_reads_the_metadata(write_config: Callable[..., Path], tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    run = tmp_path / "of-results"
    run.mkdir()
    add_evaluation(run, 6, _results(0.25))
    config = load_config(write_config())
    data = ModelCard(model_card("mine", config, [], read_evaluations(run), 6)).data
    assert [(found.metric_name, found.metric_value) for found in data.eval_results] == [
        ("acc", 0.5),
        ("exact_match (strict)", 0.25),
    ]


@pytest.mark.parametrize("line", ['{"ste', "[]", '{"step": 1}', "\xff"])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    assert read_evaluations(tmp_path) == []
    add_evaluation(tmp_path, 1, _results(0.1))
    with (tmp_path / "evaluations.jsonl").open("ab") as file:
        file.write(line.encode("latin-1"))
    with pytest.raises(UserError, match=r"evaluations\.jsonl:2: is not an evaluation; remove"):
        read_evaluations(tmp_path)
    add_evaluation(tmp_path, 2, _results(0.2))  # In place of a line that was cut off.
    assert [record["step"] for record in read_evaluations(tmp_path)] == [1, 2]
