"""Runs a model's code in a process of its own, which can hardly do more than compute.

The process has limits on time and memory, an empty environment and an empty folder, and a seccomp
filter (Linux): it can read files, but neither write, create or remove any, nor open a socket, start
or signal a process, or run a program. What is not on the filter's list is refused.
"""

import contextlib
import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

# Runs in the process. It imports nothing of this package, which the code could then change.
_GUARD = Path(__file__).with_name("guard.py")
_NO_SANDBOX = 97  # The guard's exit status if there is no filter.


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
      seconds: of processor time, and by the clock.
      bytes: of memory, the interpreter's own included.
    """

    seconds: int = 5
    bytes: int = 1 << 30


def runs_to_its_end(program: str, limits: Limits | None = None) -> bool:
    """Whether a Python program ends without an exception or an exit, within its limits.

    Raises:
      UserError: if this machine has no such sandbox.
    """
    limits = limits or Limits()
    word = secrets.token_hex()  # Written after the last statement: an early exit is no success.
    command = [sys.executable, "-I", "-B", str(_GUARD), str(limits.seconds), str(limits.bytes)]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PYTHONIOENCODING": "utf-8"},
            start_new_session=True,
        )
        try:
            # The interpreter starts within the time too.
            answer, _ = process.communicate(f"{word}\n{program}".encode(), limits.seconds + 1)
        except subprocess.TimeoutExpired:
            answer = b""
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode == _NO_SANDBOX:
        raise UserError(
            "code cannot be run here: the sandbox needs Linux on x86_64 or aarch64 with seccomp, "
            f"and this is {platform.system()} on {platform.machine()}"
        )
    return answer == word.encode()
