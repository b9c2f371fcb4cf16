"""The command line: help, exit statuses, and what to install if a package is missing."""

import argparse
import subprocess
import sys
from collections.abc import Iterator

import pytest

from train.__main__ import INSTALL, INSTALL_EVALUATE, INSTALL_GGUF, main, make_parser
from train.errors import DataError, UserError

COMMANDS = {
    "evaluate", "lm-eval", "push", "report",
    "init", "sft", "dpo", "plan", "data check", "config", "export", "generate", "import-gguf",
    "verify", "selftest",
    "delta extract", "delta apply", "delta info", "delta shira",
    "merge dare", "merge interpolate",
}  # fmt: skip


def _commands(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                if command.get_default("execute"):
                    yield name
                else:
                    yield from (f"{name} {inner}" for inner in _commands(command))


def test_every_command_is_declared() -> None:
    assert set(_commands(make_parser())) == COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*command.split(), "--help"])
    assert f"example:\n  gmt-train {command}" in capsys.readouterr().out


def _main_of(monkeypatch: pytest.MonkeyPatch, error: Exception) -> int:
    def execute(_: argparse.Namespace) -> None:
        raise error

    monkeypatch.setattr("train.__main__.parse", lambda *_: argparse.Namespace(execute=execute))
    return main([])


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (UserError("a.yaml: wrong;\n  correct it"), ["a.yaml: wrong; correct it"]),
        (DataError(["a:1: x", "b:2: y"]), ["a:1: x", "b:2: y"]),
        (
            OSError(28, "No space left on device", "/t/a"),
            [
                "[Errno 28] No space left on device: '/t/a'; make room there, or set TMPDIR for "
                "temporary files"
            ],
        ),
        (
            RuntimeError("Could not determine home directory."),
            ["this user has no home folder; set HOME to a folder"],
        ),
        (
            ModuleNotFoundError(name="orbax.checkpoint"),
            [f"the package orbax is not installed; install the extra: {INSTALL}"],
        ),
        (
            ModuleNotFoundError("No module named 'gguf'", name="gguf"),
            [f"the package gguf is not installed; install the extra: {INSTALL_GGUF}"],
        ),
    ],
)
def test_an_error_of_the_users_is_a_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    lines: list[str],
) -> None:
    assert _main_of(monkeypatch, error) == 2
    assert capsys.readouterr().err == "".join(f"gmt-train: error: {line}\n" for line in lines)


@pytest.mark.parametrize(
    "error",
    [ModuleNotFoundError(name="mine"), ValueError("a bug"), RuntimeError(), OSError(5, "I/O")],
)
def test_an_error_of_ours_is_raised(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with pytest.raises(type(error)):
        _main_of(monkeypatch, error)


WITHOUT_THE_EXTRA = """
import sys
from train.__main__ import PACKAGES, main

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in PACKAGES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
for command in (
    "init my.yaml --model m --data d", "sft --config any.yaml", "plan --config any.yaml",
    "dpo --config any.yaml", "verify run", "selftest",
    "data check --config any.yaml", "config",
    "export run", "generate model prompt", "evaluate model --tasks a", "lm-eval ls tasks",
    "push run me/name", "report run",
    "import-gguf --gguf file --out model",
    "delta extract --base a --tuned b --out c", "delta apply --base a --delta b --out c",
    "delta info a", "delta shira --base a --tuned b --out c",
    "merge dare --base a --tuned b --out c --drop-rate 0.5",
    "merge interpolate --base a --tuned b --out c --weight 0.5",
):
    print(command, main(command.split()))
main(["--help"])
"""


def test_without_the_extra_every_command_says_what_to_install() -> None:
    command = [sys.executable, "-c", WITHOUT_THE_EXTRA]
    done = subprocess.run(command, capture_output=True, text=True)
    output, _, help_text = done.stdout.partition("usage: ")
    statuses = output.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(statuses) == len(COMMANDS)
    assert all(status.endswith(" 2") for status in statuses), statuses
    messages = done.stderr.splitlines()
    assert len(messages) == len(COMMANDS)
    extras = (INSTALL, INSTALL_EVALUATE, INSTALL_GGUF)
    installs = tuple(f"install the extra: {extra}" for extra in extras)
    assert all(message.endswith(installs) for message in messages), messages
    assert INSTALL in help_text


def test_coroutines_that_a_failed_save_leaves_behind_are_not_warned_of(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    async def write() -> None:
        """Is never awaited."""

    def execute(_: argparse.Namespace) -> None:
        write()  # type: ignore[unused-coroutine]

    monkeypatch.setattr("train.__main__.parse", lambda *_: argparse.Namespace(execute=execute))
    assert main([]) == 0
    assert not recwarn.list
