"""A config to start from fits the data, the model and the devices, and a run takes it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from train.__main__ import main
from train.config import load_config
from train.data.starter import write_starter
from train.errors import UserError

Start = Callable[..., Path]


@pytest.fixture
def start(tiny_model: Path, cache: Path, tmp_path: Path) -> Start:
    """Writes a config for some conversations."""

    def start(count: int, answer: str = "b", *settings: str) -> Path:
        data, file = tmp_path / "d.jsonl", tmp_path / "my.yaml"
        rows = [{"prompt": [{"role": "user", "content": str(n)}]} for n in range(count)]
        answers = {"completion": [{"role": "assistant", "content": answer}]}
        data.write_text("".join(json.dumps(row | answers) + "\n" for row in rows))
        given = [f"cache={cache}", *settings]
        write_starter(file, str(tiny_model), str(data), given, Console(quiet=True))
        return file

    return start


def test_what_was_found_is_written(start: Start) -> None:
    file = start(50, "answer")
    text = file.read_text()
    assert "50 examples of the format completion, of " in text
    assert "A llama model of 0.0 million" in text
    assert "parameters with its own chat template" in text
    assert f"gmt-train sft --config {file}" in text
    config = load_config(file)
    assert config.run == "runs/my"
    assert (config.batch.size, config.epochs, config.export_dtype) == (8, 3, "bfloat16")
    assert (config.data.max_length, config.data.eval_fraction) == (64, 0.1)
    assert config.evaluation.prompts is None


def test_the_format_is_the_one_that_a_run_reads(
    tiny_model: Path, cache: Path, tmp_path: Path
) -> None:
    data, file = tmp_path / "d.jsonl", tmp_path / "my.yaml"
    data.write_text('{"conversation": [{"human": "a", "assistant": "b"}]}\n' * 3)
    given = [f"cache={cache}"]
    write_starter(file, str(tiny_model), str(data), given, Console(quiet=True))
    assert "3 examples of the format conversations, of " in file.read_text()


@pytest.mark.parametrize(
    ("count", "answer", "settings", "key", "value"),
    [
        (10, "b", (), "eval_fraction", 0),
        (40, "b" * 100, (), "max_length", 128),
        (40, "b" * 200, (), "max_length", 256),
        (40, "b", ("data.max_length=50",), "max_length", 50),
        (40, "b", ("data.loss_on=last",), "loss_on", "last"),
    ],
)
def test_it_fits_the_data(
    start: Start, count: int, answer: str, settings: tuple[str, ...], key: str, value: object
) -> None:
    assert getattr(load_config(start(count, answer, *settings)).data, key) == value


def test_rows_are_no_longer_than_the_models_positions(start: Start) -> None:
    """The longer ones are dropped; here these are all of them."""
    with pytest.raises(UserError, match="max_length"):
        start(40, "b" * 300)


def test_what_is_there_stays(start: Start, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"my\.yaml exists; choose another name"):
        start(40)
    assert (tmp_path / "my.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((), "d.jsonl:1"),
        (("data.colums={text: t}",), "settings: unknown key data.colums; did you mean data.col"),
        (("data.columns={text: t}", "data.streaming=true", "steps=1"), "init reads all of the"),
    ],
)
def test_faults_are_one_line_and_nothing_is_written(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: tuple[str, ...],
    message: str,
) -> None:
    (tmp_path / "d.jsonl").write_text('{"t": "a"}\n')
    file = tmp_path / "my.yaml"
    argv = ["init", str(file), "--model", str(tiny_model), "--data", str(tmp_path / "d.jsonl")]
    assert main([*argv, f"cache={tmp_path}", *settings]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not file.exists()


def test_preferences_are_started_with_their_objective(
    tiny_model: Path, cache: Path, tmp_path: Path
) -> None:
    data, file = tmp_path / "d.jsonl", tmp_path / "my.yaml"
    rows = [{"prompt": f"{n}", "chosen": "b", "rejected": "c" * (1 + n % 3)} for n in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [f"cache={cache}", "objective.kind=dpo", "data.format=preference"]
    write_starter(file, str(tiny_model), str(data), given, Console(quiet=True))
    assert f"gmt-train dpo --config {file}" in file.read_text()
    config = load_config(file)
    assert (config.objective.kind, config.optimizer.learning_rate) == ("dpo", 2e-6)
