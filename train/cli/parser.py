"""What all commands are declared with."""

import argparse
from collections.abc import Callable
from typing import Any

Commands = Any  # argparse's own type for them is private


def group(commands: Commands, name: str, text: str) -> Commands:
    """A command that has commands of its own, which are added to what it returns."""
    made = commands.add_parser(name, help=text, description=text)
    return made.add_subparsers(metavar="COMMAND", required=True)


def add(
    commands: Commands, name: str, do: Callable[..., None], text: str, example: str
) -> argparse.ArgumentParser:
    """A command; `do` is called with what was parsed."""
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(do=do)
    return made
