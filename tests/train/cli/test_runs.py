"""The commands on what a run has on disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from train.__main__ import main


def test_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err


@pytest.mark.slow
def test_this_machine_passes_the_selftest() -> None:
    command = [sys.executable, "-m", "train", "selftest"]
    # As a user has it: optax's own arithmetic is not for strict promotion.
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_NUMPY")}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert ended.returncode == 0, ended.stderr
    assert "give every bit of the uninterrupted run" in ended.stdout
