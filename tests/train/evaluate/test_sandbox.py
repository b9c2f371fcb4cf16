"""Code runs to its end or not, and cannot do more than compute."""

import sys
import time
from pathlib import Path

import pytest

from train.errors import UserError
from train.evaluate.sandbox import Limits, runs_to_its_end

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")


def test_a_program_without_an_exception_runs_to_its_end() -> None:
    program = """
import collections, heapq, itertools, json, math, re, threading
from dataclasses import dataclass

def add(a, b):
    return a + b

thread = threading.Thread(target=add, args=(1, 2))
thread.start()
thread.join()
assert add(2, 3) == 5
assert "é" == chr(233)
print("x" * 100_000)
"""
    assert runs_to_its_end(program)


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 == 2",
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "def broken(:",
        "import sys; sys.exit()",
    ],
)
def test_what_does_not_reach_its_end_fails(program: str) -> None:
    assert not runs_to_its_end(program)


ACTIONS = [
    "open(file, 'w')",
    "open(file, 'a')",
    "open('here', 'w')",
    "os.remove(file)",
    "os.rename(file, file + '2')",
    "os.mkdir('folder')",
    "os.chmod(file, 0o777)",
    "os.truncate(file, 0)",
    "os.symlink(file, 'link')",
    "os.fork()",
    "subprocess.run(['true'])",
    "os.execv('/bin/true', ['true'])",
    "os.kill(os.getppid(), 9)",
    "socket.socket()",
    "socket.socket(socket.AF_UNIX)",
    "resource.setrlimit(resource.RLIMIT_CPU, (1, 1))",
]


def test_code_cannot_touch_files_processes_or_the_network(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("whole")
    program = f"""
import os, resource, socket, subprocess
file, done = {str(file)!r}, []
for action in {ACTIONS!r}:
    try:
        exec(action)
    except OSError as error:
        assert error.errno == 1, error
    except ValueError as error:  # resource's word for it
        assert "not allowed" in str(error), error
    else:
        done.append(action)
assert not done
assert open(file).read() == "whole"
"""
    assert runs_to_its_end(program)
    assert file.read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert runs_to_its_end(
        "import os; assert 'HF_TOKEN' not in os.environ; assert not os.listdir()"
    )


def test_time_and_memory_are_limited() -> None:
    begin = time.monotonic()
    assert not runs_to_its_end("while True: pass", Limits(seconds=1))
    assert not runs_to_its_end("import time; time.sleep(60)", Limits(seconds=1))
    assert time.monotonic() - begin < 20
    assert not runs_to_its_end("x = bytearray(10 ** 9)", Limits(bytes=5 * 10**8))
    assert runs_to_its_end("x = bytearray(10 ** 8)", Limits(bytes=5 * 10**8))


def test_without_a_filter_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    guard = Path(sys.modules[runs_to_its_end.__module__].__file__ or "").with_name("guard.py")
    unfiltered = guard.read_text().replace("set_seccomp, filter_mode =", "set_seccomp, _ =")
    broken = tmp_path / "guard.py"
    broken.write_text(unfiltered.replace("platform.machine()", "'pdp11'"))
    monkeypatch.setattr("train.evaluate.sandbox._GUARD", broken)
    with pytest.raises(UserError, match="code cannot be run here: the sandbox needs Linux"):
        runs_to_its_end("pass")
