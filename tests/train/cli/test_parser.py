"""How commands are declared, and how arguments are read."""

import argparse

import pytest

from train.cli.parser import RENAMED_OPTIONS, add_command, add_group, parse


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="p")
    commands = parser.add_subparsers(required=True)
    tune = add_command(commands, "tune", print, "Tune.", "p tune a=1")
    tune.add_argument("--config")
    tune.add_argument("--resume", action="store_true")
    tune.add_argument("overrides", nargs="*")
    data = add_group(commands, "data", "Data.")
    add_command(data, "check", print, "Check.", "p data check FILE").add_argument("file")
    return parser


def test_a_command_is_found_in_its_group(parser: argparse.ArgumentParser) -> None:
    args = parse(parser, ["data", "check", "x"])
    assert (args.file, args.execute) == ("x", print)


def test_help_has_the_example(
    parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse(parser, ["data", "check", "--help"])
    assert "example:\n  p data check FILE\n" in capsys.readouterr().out


def test_settings_stand_anywhere_among_the_options(parser: argparse.ArgumentParser) -> None:
    args = parse(parser, ["tune", "--config", "f", "a=1", "--resume", "b=2"])
    assert (args.config, args.resume, args.overrides) == ("f", True, ["a=1", "b=2"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("tune a=1 --resum3", "unrecognized arguments: --resum3"),
        ("tune --res", "unrecognized arguments: --res"),
        ("data check x y", "unrecognized arguments: y"),
        ("tuna", "invalid choice: 'tuna'"),
        ("tune --coordinator host:1 a=1", "--coordinator is now --coordinator-address"),
        ("tune --processes=2 a=1", "--processes is now --num-processes"),
        ("tune --process 0", "--process is now --process-id"),
    ],
)
def test_other_arguments_are_refused(
    parser: argparse.ArgumentParser,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(parser, arguments.split())
    assert message in capsys.readouterr().err


def test_renamed_options_exist_under_the_new_name() -> None:
    from train.cli.processes import add_process_options

    parser = argparse.ArgumentParser()
    add_process_options(parser)
    usage = parser.format_usage()
    assert all(f"[{new} " in usage for new in RENAMED_OPTIONS.values())
    assert not any(f"[{old} " in usage for old in RENAMED_OPTIONS)
