"""generate passes its options on, and reads and writes files of prompts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.__main__ import main
from train.cli.generation import parse_mesh
from train.errors import UserError
from train.generate import Sampling

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What completions are asked for; each prompt's is its number."""
    calls: list[Any] = []

    def complete(
        source: str, prompts: list[Any], *given: Any, warn: Callable[[str], None], **options: Any
    ) -> list[str]:
        calls.append((source, prompts, *given, options))
        warn("ends differ")
        return [f"<{number}>\x1b" for number, _ in enumerate(prompts)]

    monkeypatch.setattr("train.restore.complete_prompts", complete)
    return calls


def test_generate_prints_every_completion(calls: list[Any], capsys: Capture) -> None:
    options = (
        "--raw --max-new-tokens 5 --temperature 0.7 --top-p 0.9 --top-k 7 --seed 3 --stop ; "
        "--stop END --batch-size 4 --dtype bfloat16 --mesh data=8"
    )
    assert main(["generate", "m", "first", "second", *options.split()]) == 0
    [(source, prompts, sampling, given)] = calls
    assert (source, prompts) == ("m", ["first", "second"])
    assert sampling == Sampling(5, 0.7, 0.9, 3, 7)
    assert dict(given.pop("mesh").shape) == {"data": 8, "fsdp": 1, "context": 1, "tensor": 1}
    assert given == {
        "raw": True, "stop_strings": [";", "END"], "batch_size": 4, "dtype": "bfloat16"
    }  # fmt: skip
    printed = capsys.readouterr()
    assert printed.out == "<0>\\x1b\n<1>\\x1b\n"
    assert printed.err == "gmt-train: warning: ends differ\n"


def test_a_file_of_prompts_is_written_with_completions(
    calls: list[Any], tmp_path: Path, capsys: Capture
) -> None:
    turns = [{"role": "user", "content": "one"}]
    records = [{"id": 7, "prompt": "täglich"}, {"messages": turns}]
    file, out = tmp_path / "prompts.jsonl", tmp_path / "out" / "completions.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["generate", "m", "--prompts", str(file), "--out", str(out)]) == 0
    assert calls[0][1] == ["täglich", turns]
    lines = out.read_text(encoding="utf-8").splitlines()
    completed = [{**record, "completion": f"<{n}>\x1b"} for n, record in enumerate(records)]
    assert [json.loads(line) for line in lines] == completed
    assert "täglich" in lines[0]
    assert main(["generate", "m", "--prompts", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == lines


def test_a_file_that_cannot_be_written_is_known_before_anything_is_completed(
    calls: list[Any], tmp_path: Path, capsys: Capture
) -> None:
    assert main(["generate", "m", "one", "--out", str(tmp_path)]) == 2
    assert f"error: {tmp_path} is no regular file" in capsys.readouterr().err
    assert not calls


@pytest.mark.parametrize("given", [[], ["one", "--prompts", "file.jsonl"]])
def test_prompts_are_given_in_one_way(given: list[str], calls: list[Any], capsys: Capture) -> None:
    assert main(["generate", "m", *given]) == 2
    assert "give prompts, or a file of them by --prompts" in capsys.readouterr().err
    assert calls == []


def test_a_mesh_is_named_by_its_axes() -> None:
    assert dict(parse_mesh("").shape)["fsdp"] == 8
    assert dict(parse_mesh("tensor=2,data=-1").shape)["data"] == 4
    for text, message in {
        "wings=2": "--mesh: wings",
        "data=some": "--mesh: data",
        "data": "--mesh: data",
        "tensor=3": "does not match the 8 devices here",
    }.items():
        with pytest.raises(UserError, match=message):
            parse_mesh(text)
