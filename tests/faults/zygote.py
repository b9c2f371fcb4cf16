"""Has imported the program, and forks a process for each command that is asked for.

A line on stdin is a request in JSON: {"arguments": …, "output": FILE, "file_size": …,
"environment": …} is answered with the process's id, {"wait": ID, "seconds": …} with its exit status
(negative for a signal, -100 after too many seconds).
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

import datasets  # noqa: F401
import flax  # noqa: F401
import grain  # noqa: F401
import transformers  # noqa: F401

import train.checkpoint
import train.data.tables
import train.restore
import train.sft  # noqa: F401
from train.__main__ import main


def run(request: dict[str, Any], sink: IO[bytes]) -> int:
    """What a forked process does; returns its exit status."""
    os.dup2(sink.fileno(), 1)
    os.dup2(sink.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, closefd=False) for n in (1, 2))
    os.environ.update(request.get("environment", {}))
    if request.get("file_size"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"],) * 2)
    try:
        if request["arguments"][0] == "make-model":
            make_model(Path(request["arguments"][1]))
            return 0
        return main(request["arguments"])
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 70


def make_model(folder: Path) -> None:
    """Writes the tiny model of the other tests."""
    import jax

    sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
    import conftest  # type: ignore[import-not-found]

    from train.hf.save import save_params
    from train.model import ModelConfig, init_params

    config = ModelConfig.from_hf(conftest.LLAMA, "config.json")
    save_params(init_params(config, jax.random.key(0)), config, folder, "float32")
    conftest._save_tokenizer(folder)


def wait(pid: int, seconds: float) -> int:
    """The exit status of a process."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -100


for line in iter(sys.stdin.readline, ""):
    request = json.loads(line)
    if "wait" in request:
        print(wait(request["wait"], request["seconds"]), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        status = 70
        # What is printed is written by another process, which the limit on files is not for.
        with Path(request["output"]).open("wb") as file:
            cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
        assert cat.stdin
        with contextlib.suppress(BaseException):
            status = run(request, cat.stdin)
            sys.stdout.flush()
            sys.stderr.flush()
        cat.stdin.close()
        os.closerange(1, 3)
        cat.wait(10)
        os._exit(status)
    print(pid, flush=True)
