"""The one exception that is meant for the user rather than for us."""

import sys
from collections.abc import Sequence


class UserError(Exception):
    """One line for the user: what is wrong, where (file:line, key, tensor), what to do.

    The command line prints it to stderr without a traceback and exits with status 2.
    """

    @property
    def lines(self) -> list[str]:
        """What is printed, a line a fault."""
        return [" ".join(str(self).split())]


class DataError(UserError):
    """Several faults of the data at once, a line each, up to a limit."""

    LIMIT = 50

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(*faults[: self.LIMIT])
        self._more = len(faults) - self.LIMIT

    @property
    def lines(self) -> list[str]:
        """The faults, and how many more there are."""
        lines = [" ".join(str(fault).split()) for fault in self.args]
        return lines + ([f"… and {self._more:,} more"] if self._more > 0 else [])

    def __str__(self) -> str:
        return "; ".join(self.lines)


def show(error: UserError) -> None:
    """Prints an error's lines to stderr."""
    for line in error.lines:
        print(f"gmt-train: error: {line}", file=sys.stderr)
