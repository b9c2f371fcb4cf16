"""Errors that the user can mend, in contrast to faults of the program."""

import sys
from collections.abc import Sequence


class UserError(Exception):
    """An error in one line: what is wrong, where (file:line, key, tensor), and what to do.

    The command line prints it to stderr without a traceback and exits with status 2.
    """

    @property
    def lines(self) -> list[str]:
        """The lines to print, one per fault."""
        return [" ".join(str(self).split())]


class DataError(UserError):
    """Several faults of the data, one line each, of which the first `LIMIT` are shown."""

    LIMIT = 50

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(*faults[: self.LIMIT])
        self._num_hidden = len(faults) - self.LIMIT

    @property
    def lines(self) -> list[str]:
        """The first faults, and how many more there are."""
        lines = [" ".join(str(fault).split()) for fault in self.args]
        return lines + ([f"… and {self._num_hidden:,} more"] if self._num_hidden > 0 else [])

    def __str__(self) -> str:
        return "; ".join(self.lines)


def printable(text: str) -> str:
    """The text without characters that a terminal obeys; line breaks and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def show(error: UserError) -> None:
    """Prints an error's lines to stderr."""
    for line in error.lines:
        print(f"gmt-train: error: {printable(line)}", file=sys.stderr)


def warn(line: str) -> None:
    """Prints a line to stderr about what is not as it should be and is gone on with."""
    print(f"gmt-train: warning: {printable(line)}", file=sys.stderr)
