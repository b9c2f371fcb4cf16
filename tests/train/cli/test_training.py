"""sft refuses in one line, before it makes a run, what it cannot train on; config prints keys."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.__main__ import main
from train.config.reference import reference

Write = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


def _fails(capsys: Capture, config: Path, *settings: str) -> str:
    """The one line on stderr of an `sft` that ends with status 2 and has made no run."""
    assert main(["sft", "--config", str(config), *settings]) == 2
    message = capsys.readouterr().err
    assert message.startswith("gmt-train: error: ")
    assert message.count("\n") == 1
    assert not (config.parent / "run").exists()
    return message


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.mask.mask_rato=0.1", "did you mean optimizer.mask.mask_ratio?"),
        ("data.train=nowhere.jsonl", "nowhere.jsonl"),
        ("model.path=./nowhere", "nowhere"),
        ("mesh.tensor=3", "does not match the 8 devices"),
        ("batch={size: 6, num_microbatches: 1}", "not divisible by the 8 devices"),
        ("batch={size: 64}", "an epoch has 32 rows, fewer than a batch of 64"),
        ("data={train: nowhere.csv, streaming: true}", "nothing is split off a stream"),
    ],
)
def test_bad_settings(write_config: Write, capsys: Capture, setting: str, message: str) -> None:
    assert message in _fails(capsys, write_config(), setting)


def test_a_run_that_cannot_be_written(write_config: Write, capsys: Capture) -> None:
    config = write_config()
    message = _fails(capsys, config, f"run={config}/run")
    assert "run: cannot be written (" in message
    assert "Not a directory); set run to another folder" in message


def test_processes_that_do_not_add_up(write_config: Write, capsys: Capture) -> None:
    message = _fails(capsys, write_config(), "--process-id", "1")
    assert "need --coordinator-address HOST:PORT" in message


@pytest.mark.parametrize(
    "line",
    [
        '{"messages": [',
        '["not", "an object"]',
        json.dumps({"messages": [{"role": "user", "content": "hi"}]}),
        json.dumps({"messages": [{"role": "wizard", "content": "hi"}]}),
        json.dumps({"something": 1}),
    ],
    ids=["malformed", "not an object", "nothing to train on", "unknown role", "no known field"],
)
def test_bad_data(write_config: Write, tmp_path: Path, capsys: Capture, line: str) -> None:
    good = json.dumps({"messages": [{"role": "assistant", "content": "hi"}]})
    (tmp_path / "bad.jsonl").write_text(f"{good}\n{line}\n")
    config = write_config(data={"train": str(tmp_path / "bad.jsonl")})
    assert "bad.jsonl:2" in _fails(capsys, config)


def _unknown_architecture(model: Path) -> str:
    config: dict[str, Any] = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    return "mamba"


def _truncated_weights(model: Path) -> str:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return "model.safetensors"


def _no_tokenizer(model: Path) -> str:
    for file in model.glob("tokenizer*"):
        file.unlink()
    return "tokenizer"


@pytest.mark.parametrize("damage", [_unknown_architecture, _truncated_weights, _no_tokenizer])
def test_bad_model(
    write_config: Write,
    tiny_model: Path,
    tmp_path: Path,
    capsys: Capture,
    damage: Callable[[Path], str],
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    message = damage(model)
    assert message in _fails(capsys, write_config(model={"path": str(model)}))


@pytest.mark.slow
def test_a_pipe_gets_plain_lines(write_config: Write) -> None:
    command = [sys.executable, "-m", "train", "sft", "--config", str(write_config(steps=2))]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "step 2/2  loss " in process.stdout
    assert "eval loss" in process.stdout
    assert "\x1b" not in process.stdout


@pytest.mark.parametrize("eval_fraction", [0, pytest.param(0.2, marks=pytest.mark.slow)])
def test_piped_output_has_no_control_characters(
    write_config: Write, capsys: Capture, eval_fraction: float
) -> None:
    settings = ["steps=2", f"data.eval_fraction={eval_fraction}", "optimizer.mask.kind=none"]
    assert main(["sft", "--config", str(write_config()), *settings]) == 0
    out = capsys.readouterr().out
    assert "step 2/2  loss " in out
    assert ("eval loss" in out) == (eval_fraction > 0)
    assert "\x1b" not in out


def test_config_prints_the_reference_or_the_schema(capsys: Capture) -> None:
    assert main(["config"]) == 0
    assert capsys.readouterr().out == reference()
    assert main(["config", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["required"] == ["run", "model", "data"]


def test_each_command_has_its_objectives(write_config: Write, capsys: Capture) -> None:
    message = _fails(capsys, write_config(), "objective.kind=dpo")
    assert "objective.kind is dpo; set it to sft, or run gmt-train dpo" in message
    assert main(["dpo", "--config", str(write_config())]) == 2
    message = capsys.readouterr().err
    assert "objective.kind is sft; set it to dpo, robust_dpo, hinge, ipo, simpo or orpo" in message


def test_single_answers_are_not_for_dpo(
    write_config: Write, capsys: Capture, tmp_path: Path
) -> None:
    config = write_config(objective={"kind": "dpo"})
    assert main(["dpo", "--config", str(config)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "sums.jsonl:1: is not a preference pair, which needs chosen and rejected" in message
    assert not (tmp_path / "run").exists()
