"""delta and merge pass their options on to the functions that do the work."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from train.__main__ import main

BASE, TUNED = Path("base"), Path("tuned")
MODELS = "--base base --tuned tuned --out out"
CALLS: list[tuple[str, str, tuple[Any, ...]]] = [
    (f"delta extract {MODELS}", "delta.extract", (BASE, TUNED, Path("out"))),
    ("delta apply --base base --delta d --out out", "delta.apply", (BASE, Path("d"), Path("out"))),
    ("delta info d", "delta.describe", (Path("d"),)),
    (f"merge dare {MODELS} --drop-rate 0.9", "merge.dare", (BASE, TUNED, Path("out"), 0.9, 0)),
    (f"merge interpolate {MODELS} --weight 1", "merge.interpolate", (BASE, TUNED, Path("out"), 1)),
]


@pytest.mark.parametrize(("command", "function", "arguments"), CALLS)
def test_a_command_calls_its_function(
    command: str,
    function: str,
    arguments: tuple[Any, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = []

    def record(*given: Any) -> Any:
        calls.append(given)
        return SimpleNamespace(num_changed=1234, density=0.05)

    monkeypatch.setattr(f"train.hf.{function}", record)
    monkeypatch.setattr("train.hf.hub.resolve_model", Path)
    assert main(command.split()) == 0
    assert calls == [arguments]
    assert capsys.readouterr().out


def test_extract_reports_how_much_differs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = SimpleNamespace(num_changed=1234, density=0.05)
    monkeypatch.setattr("train.hf.delta.extract", lambda *_: contents)
    monkeypatch.setattr("train.hf.hub.resolve_model", Path)
    assert main(f"delta extract {MODELS}".split()) == 0
    assert capsys.readouterr().out == "wrote out: 1,234 entries, 5.0000% of the model's\n"
