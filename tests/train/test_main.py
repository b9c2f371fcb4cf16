"""The command line: help, and one line for everything that the user can mend."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.__main__ import main

Write = Callable[..., Path]


@pytest.mark.parametrize(
    "command", ["sft", "plan", "data check", "export", "generate", "import-gguf"]
)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert f"example:\n  gmt-train {command} " in out


def test_an_unknown_command_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["sfft"])
    assert caught.value.code == 2
    assert "sfft" in capsys.readouterr().err


def _fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr of a command that ends with status 2."""
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("gmt-train: error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("--process 1", "--processes and --process need --coordinator HOST:PORT"),
        ("--coordinator here", "must be HOST:PORT or auto, got 'here'"),
        ("--coordinator here:x --processes 2 --process 0", "must be HOST:PORT or auto"),
        ("--coordinator here:1", "needs --processes N and --process I"),
        ("--coordinator here:1 --processes 2 --process 2", "--process: must be from 0 up to 1"),
        ("--coordinator auto --process 1", "leave them out"),
    ],
)
def test_a_place_that_does_not_add_up_is_refused(
    write_config: Write, capsys: pytest.CaptureFixture[str], place: str, said: str
) -> None:
    assert said in _fails(capsys, "sft", "--config", str(write_config()), *place.split())


def _copy(model: Path, to: Path) -> Path:
    to.mkdir()
    for file in model.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.mask.mask_rato=0.1", "did you mean optimizer.mask.mask_ratio?"),
        (
            "optimizer.mask.mask_ratio=2",
            "optimizer.mask.mask_ratio: input should be less than or equal to 1",
        ),
        ("data.train=nowhere.jsonl", "nowhere.jsonl"),
        ("model.path=./nowhere", "nowhere"),
        ("mesh.tensor=3", "does not match the 8 devices"),
        ("batch={size: 6, num_microbatches: 1}", "not divisible by the 8 devices"),
        ("batch={size: 64}", "an epoch has 32 rows, fewer than a batch of 64"),
        ("data={train: nowhere.csv, streaming: true}", "nothing is split off a stream"),
    ],
)
def test_bad_settings(
    write_config: Write, capsys: pytest.CaptureFixture[str], override: str, said: str
) -> None:
    config = write_config()
    assert said in _fails(capsys, "sft", "--config", str(config), override)
    assert not (config.parent / "run").exists()


def test_a_run_that_cannot_be_written(
    write_config: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config()
    said = _fails(capsys, "sft", "--config", str(config), f"run={config}/run")
    assert "run/config.yaml: cannot be written (" in said
    assert "Not a directory); set run to another folder" in said


def test_settings_stand_anywhere_and_unknown_options_nowhere(
    write_config: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sft", "--config", str(write_config()), "steps=1", "--resume", "mesh.tensor=3"]
    assert "does not match the 8 devices" in _fails(capsys, *words)
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--resum3"])
    assert "unrecognized arguments: --resum3" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["export", "run", "second"])
    assert "unrecognized arguments: second" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"messages": [', "bad.jsonl:2"),
        ('["not", "an object"]', "bad.jsonl:2"),
        (json.dumps({"messages": [{"role": "user", "content": "hi"}]}), "bad.jsonl:2"),
        (json.dumps({"messages": [{"role": "wizard", "content": "hi"}]}), "bad.jsonl:2"),
        (json.dumps({"something": 1}), "bad.jsonl:2"),
    ],
    ids=["malformed", "not an object", "no target", "unknown role", "no known field"],
)
def test_bad_data(
    write_config: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    line: str,
    said: str,
) -> None:
    good = json.dumps({"messages": [{"role": "assistant", "content": "hi"}]})
    (tmp_path / "bad.jsonl").write_text(f"{good}\n{line}\n")
    config = write_config(data={"train": str(tmp_path / "bad.jsonl")})
    assert said in _fails(capsys, "sft", "--config", str(config))
    assert not (tmp_path / "run").exists()


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


@pytest.mark.parametrize("harm", [_unknown_architecture, _truncated_weights, _no_tokenizer])
def test_bad_model(
    write_config: Write,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], str],
) -> None:
    model = _copy(tiny_model, tmp_path / "model")
    said = harm(model)
    config = write_config(model={"path": str(model)})
    assert said in _fails(capsys, "sft", "--config", str(config))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a run" in _fails(capsys, "export", str(tmp_path))


def test_an_export_does_not_write_over_a_model(
    write_config: Write, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(steps=1)
    assert main(["sft", "--config", str(config)]) == 0
    _copy(tiny_model, tmp_path / "mine")
    said = _fails(capsys, "export", str(tmp_path / "run"), "--out", str(tmp_path / "mine"))
    assert "mine is not empty" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "mine", "run"]


def test_without_the_extra_it_says_what_to_install() -> None:
    script = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pydantic", "yaml", "flax", "rich"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from train.__main__ import main
sys.exit(main(["sft", "--config", "any.yaml"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert 'pip install "gmt-jax[train]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_piped_output_is_plain_lines(write_config: Write) -> None:
    config = write_config(steps=2)
    command = [sys.executable, "-m", "train", "sft", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "step 2/2  loss " in done.stdout
    assert "\x1b" not in done.stdout
    assert "held-out loss" in done.stdout
