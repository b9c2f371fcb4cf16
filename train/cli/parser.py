"""How commands are declared and how arguments are read; it needs the standard library alone."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..buckets import address

# Options that had other names before: refused with the new one.
RENAMED_OPTIONS = {
    "--coordinator": "--coordinator-address",
    "--processes": "--num-processes",
    "--process": "--process-id",
}


class Commands(Protocol):
    """The commands of the program, or of a group of them, to which more can be added."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser:
        """Adds a command and returns the parser of its arguments."""


def add_group(commands: Commands, name: str, description: str) -> Commands:
    """Adds a command that has commands of its own, and returns those."""
    parser = commands.add_parser(name, help=description, description=description)
    return parser.add_subparsers(metavar="COMMAND", required=True)


def add_command(
    commands: Commands,
    name: str,
    execute: Callable[[argparse.Namespace], int | None],
    description: str,
    example: str,
) -> argparse.ArgumentParser:
    """Adds a command, which calls `execute` with the parsed arguments; returns its parser.

    What `execute` returns is the exit status, None being 0.
    """
    parser = commands.add_parser(
        name,
        help=description,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(execute=execute)
    return parser


def local_path(text: str) -> Path:
    """The type of options that are paths: an address is refused."""
    try:
        return address.local_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def place(text: str) -> Path | str:
    """The type of options that are paths or addresses."""
    try:
        address.check_place(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text if address.is_address(text) else Path(text)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments; a command's settings may stand anywhere among its options.

    argparse itself takes one uninterrupted run of them. Exits with status 2 on what it does not
    know, naming the new name of an option that was renamed.
    """
    args, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-") or "overrides" not in args]
    for word in unknown:
        option = word.partition("=")[0]
        if option in RENAMED_OPTIONS:
            parser.error(f"{option} is now {RENAMED_OPTIONS[option]}")
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        args.overrides += rest
    return args
