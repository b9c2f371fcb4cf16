"""Several processes on this machine, started as a user would start them."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

# Gloo's threads write over each other, so that a line of theirs may be any of its words.
GLOO = re.compile(
    r"(\[Gloo\]|Rank|is|connected|to|peer|ranks\.?|Expected|number|of|:|\d|\s)*", re.ASCII
)


class Process(subprocess.Popen[str]):
    """One of several processes."""

    def ended(self, seconds: float = 400) -> tuple[int, str, str]:
        """Its exit status, output and errors."""
        out, errors = self.communicate(timeout=seconds)
        said = [line for line in out.splitlines() if not GLOO.fullmatch(line)]
        return self.returncode, "\n".join(said), errors


@contextmanager
def _start(
    file: Path | str,
    *arguments: str,
    count: int = 2,
    absent: int = 0,
    program: Sequence[str] = ("-m", "train", "sft", "--config"),
) -> Iterator[list[Process]]:
    """`sft` in several processes on this machine; those left at the end are killed."""
    flags = re.sub(r"device_count=\d+", "device_count=4", os.environ["XLA_FLAGS"])
    with socket.socket() as held:  # Bound, so that nobody else is given its port.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        options = f"--coordinator-address {address} --num-processes {count + absent}"
        command = [sys.executable, *program, str(file), *options.split()]
        started = [
            Process(
                [*command, "--process-id", str(number), *arguments],
                env=os.environ | {"XLA_FLAGS": flags},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(count)
        ]
        try:
            yield started
        finally:
            for process in started:
                process.kill()
                process.communicate()


@pytest.fixture(scope="session", name="start")
def _start_fixture() -> Callable[..., AbstractContextManager[list[Process]]]:
    return _start
