"""An evaluation from the command line: results, samples, and one line for a fault."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.__main__ import main
from train.errors import UserError
from train.evaluate.evaluation import Settings

ROOT = Path(__file__).parents[3]
Capture = pytest.CaptureFixture[str]
KEYS: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}}",
    "doc_to_choice": ["aa", "b"],
    "doc_to_target": 0,
}


def test_results_are_printed_and_written(
    tiny_model: Path, write_task: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    texts = [{"text": f"text {number}"} for number in range(5)]
    task, out = write_task("letters", texts, **KEYS), tmp_path / "out"
    options = f"--tasks {task} --limit 3 --out {out} --batch-size 8 --chat --system S --multiturn"
    assert main(["evaluate", str(tiny_model), *options.split()]) == 0
    printed = capsys.readouterr().out
    assert "|letters|" in printed
    assert "tokens/s" in printed
    assert printed.endswith(f"wrote {out}\n")
    results = json.loads((out / "results.json").read_text())
    assert 0 <= results["results"]["letters"]["acc,none"] <= 1
    assert results["model"]["name"] == str(tiny_model)
    assert results["mesh"] == {"data": 1, "fsdp": 8, "context": 1, "tensor": 1}
    assert results["settings"]["chat_template"] is True
    assert results["tokens"] > 100
    rows = [json.loads(line) for line in (out / "samples_letters.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert rows[0]["arguments"][0][0] == (
        "<|start|>system\nS<|end|>\n<|start|>user\ntext 0<|end|>\n<|start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--tasks none.yaml", "none.yaml: No such file or directory"),
        ("--tasks x.yaml --limit 0", "--limit: 0 is too small"),
        ("--tasks x.yaml --num-fewshot -1", "--num-fewshot: -1 is too small"),
        ("--tasks x.yaml --system S", "--system: is a turn of the chat template; add --chat"),
        ("--tasks x.yaml --multiturn", "--multiturn: examples are turns of the chat template"),
        ("--tasks x.yaml --data y", "--data y: write SPLIT=FILE"),
    ],
)
def test_a_fault_is_one_line(options: str, message: str, capsys: Capture) -> None:
    assert main(["evaluate", "models/none", *options.split()]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_examples_are_turns_only_of_a_template() -> None:
    with pytest.raises(UserError, match="add --chat"):
        Settings(multiturn=True)


WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
hidden = lambda name, *given: None if name.partition(".")[0] == "torch" else find(name, *given)
PathFinder.find_spec = staticmethod(hidden)
from train.__main__ import main

status = main()
assert "torch" not in sys.modules
sys.exit(status)
"""


@pytest.mark.slow
def test_lm_evals_own_command_knows_the_model_without_pytorch(
    tiny_model: Path, write_task: Callable[..., Path], tmp_path: Path
) -> None:
    task = write_task("letters", [{"text": "text"}], **KEYS)
    command = [sys.executable, "-c", WITHOUT_TORCH, "lm-eval", "--model", "gmt-train"]
    arguments = ["--model_args", f"pretrained={tiny_model}", "--tasks", str(task)]
    done = subprocess.run(
        [*command, *arguments, "--output_path", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "|letters|" in done.stdout
    assert list((tmp_path / "out").rglob("results_*.json"))


@pytest.mark.slow
def test_the_card_of_a_runs_export_has_its_results(
    write_config: Callable[..., Path], write_task: Callable[..., Path], tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    assert main(["sft", "--config", str(write_config())]) == 0
    task = write_task("letters", [{"text": "text"}, {"text": "other"}], **KEYS)
    assert main(["evaluate", run, "--tasks", str(task)]) == 0
    assert main(["export", run, "--dtype", "float32"]) == 0
    card = (tmp_path / "run/export/README.md").read_text()
    assert "model-index:" in card
    assert "| letters | 0 | acc | 6 | " in card
