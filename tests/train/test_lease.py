"""One writer a folder, and none for ever."""

import subprocess
import sys
from pathlib import Path

import pytest

from train.errors import UserError
from train.lease import release, take

HOLD = """
import sys
from pathlib import Path
from train.lease import take
take(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_another_process_is_refused_while_this_one_lives(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with other:
        assert other.stdout
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=rf"being written by .*process {other.pid} on .*; wait"):
            take(tmp_path)
        other.kill()
    assert take(tmp_path), "a lease does not outlive its process"
    assert not take(tmp_path), "it is this process's already"
    failed = subprocess.run(command, input=b"", capture_output=True, check=False)
    assert b"is being written by another run" in failed.stderr
    release(tmp_path)
    release(tmp_path)
    assert take(tmp_path)
    release(tmp_path)
