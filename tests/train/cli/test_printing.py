"""Output that cannot be written ends no run, and is one line of any other command."""

import argparse
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.__main__ import main
from train.cli.printing import safe_printing

FULL = "standard output cannot be written (No space left on device)"


class Failing(io.TextIOWrapper):
    """A stream to which nothing can be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__(io.BytesIO())
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def _main(monkeypatch: pytest.MonkeyPatch, execute: Callable[[Any], object], **args: Any) -> int:
    parsed = argparse.Namespace(execute=execute, **args)
    monkeypatch.setattr("train.__main__.parse", lambda *_: parsed)
    return main([])


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), BrokenPipeError(32, "Broken pipe")]
)
def test_a_run_goes_on_without_what_it_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError
) -> None:
    steps = []

    def execute(_: object) -> None:
        for step in range(3):
            print("step", step, flush=True)
            steps.append(step)

    monkeypatch.setattr("sys.stdout", Failing(error))
    assert _main(monkeypatch, execute, resume=False) == 0
    assert steps == [0, 1, 2]
    warning = f"standard output cannot be written ({error.strerror}); the run goes on"
    assert capsys.readouterr().err == f"gmt-train: warning: {warning}\n"


def test_other_commands_end_with_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", Failing(OSError(28, "No space left on device")))
    assert _main(monkeypatch, lambda _: print("whole")) == 2
    assert capsys.readouterr().err == f"gmt-train: error: {FULL}\n"


def test_what_is_left_at_the_end_is_written_before_the_status_is_known() -> None:
    command = [sys.executable, "-m", "train", "config"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, f"gmt-train: error: {FULL}\n")


def test_a_reader_that_has_seen_enough_ends_a_command_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", Failing(BrokenPipeError(32, "Broken pipe")))
    with pytest.raises(SystemExit, match="141"):
        _main(monkeypatch, lambda _: print("whole"))
    assert not capsys.readouterr().err


def test_an_error_that_cannot_be_shown_has_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Failing(OSError(28, "No space left on device")))
    assert main(["verify", "/nowhere"]) == 2


def test_characters_that_an_encoding_does_not_have_are_escaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    with safe_printing():
        print("0.9 → é")
    assert written.getvalue() == b"0.9 \\u2192 \\xe9\n"


CLOSED = """
import os
from train.cli.printing import safe_printing
for descriptor in range(3):
    os.close(descriptor)
with safe_printing(), open(os.devnull) as file:
    os._exit(file.fileno())
"""


def test_no_file_is_taken_for_output_that_was_closed() -> None:
    assert subprocess.run([sys.executable, "-c", CLOSED], check=False).returncode > 2
