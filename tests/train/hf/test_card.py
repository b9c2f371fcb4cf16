"""The model card says what was tuned, on which data, how and with which result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from train.config import load_config
from train.hf.card import model_card

Write = Callable[..., Path]


def _card(file: Path, *records: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The metadata and the text of the card of a run with these records."""
    config = load_config(file)
    _, header, text = model_card("mine", config, records).split("---\n", 2)
    metadata: dict[str, Any] = yaml.safe_load(header)
    return metadata, text


def test_what_the_hub_has_is_linked(write_config: Write) -> None:
    model = {"path": "owner/base", "revision": "v1"}
    data = {"train": [{"path": "owner/chats", "weight": 2.0}, "my.jsonl"], "revision": "abc"}
    metadata, text = _card(write_config(model=model, data=data))
    assert metadata["base_model"] == "owner/base"
    assert metadata["datasets"] == ["owner/chats"]
    assert metadata["library_name"] == "transformers"
    assert metadata["tags"] == ["gmt-jax", "sft", "gradient-mask-tuning"]
    assert "owner/base (revision v1), fine-tuned with" in text
    assert "| owner/chats at abc | training | train | 2 |" in text


def test_no_path_of_this_machine_is_published(
    write_config: Write, tmp_path: Path, tiny_model: Path, tiny_data: Path
) -> None:
    metadata, text = _card(write_config())
    assert "base_model" not in metadata
    assert "datasets" not in metadata
    assert f"{tiny_model.name}, fine-tuned" in text
    assert "| sums.jsonl | training | train | 1 |" in text
    assert not [path for path in (tmp_path, tiny_model, tiny_data) if str(path.parent) in text]


def test_method_and_settings_are_those_of_the_run(write_config: Write) -> None:
    records = [
        {"step": 0, "data": ["training data: 40 examples", "evaluation data: 2 examples"]},
        {"step": 0, "eval_loss": 2.0},
        {"step": 3, "eval_loss": 1.5},
        {"step": 6, "loss": 1.0, "masked_fraction": 0.2},
        {"step": 6, "eval_loss": 1.25},
    ]
    _, text = _card(write_config(seed=3), *records)
    assert "6 updates of 8 rows by AdamW, under the mask `gmt_mask`" in text
    assert "20.00% of all entries" in text
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings["seed"] == 3
    assert settings["optimizer"]["learning_rate"] == 1e-2
    assert settings["optimizer"]["mask"]["mask_ratio"] == 0.2
    assert "- training data: 40 examples\n- evaluation data: 2 examples\n" in text
    assert "| 0 | 2.0000 |\n| 6 | 1.2500 |" in text


@pytest.mark.parametrize("records", [[], [{"step": 2, "loss": 1.0}]])
def test_without_eval_data_or_mask_there_is_no_such_part(
    write_config: Write, records: list[dict[str, Any]]
) -> None:
    metadata, text = _card(write_config(optimizer={"mask": {"kind": "none"}}), *records)
    assert "Results" not in text
    assert "without a mask" in text
    assert "gradient-mask-tuning" not in metadata["tags"]


def test_preferences_are_named_with_their_accuracy(write_config: Write) -> None:
    records = [
        {"step": 0, "eval_loss": 0.6931, "eval_accuracy": 0.5},
        {"step": 6, "eval_loss": 0.5, "eval_accuracy": 0.75},
    ]
    metadata, text = _card(write_config(objective={"kind": "ipo"}), *records)
    assert "ipo" in metadata["tags"]
    assert "Preferences by the objective `ipo`: 6 updates of 8 pairs by AdamW" in text
    assert "The loss compares the chosen and the rejected answer of each pair" in text
    assert "| updates | eval loss | eval accuracy |\n|---|---|---|\n| 0 | 0.6931 | 0.5000 |" in text
    assert "| 6 | 0.5000 | 0.7500 |" in text
