"""Has imported the program, and forks a process for each command that is asked for.

A line on stdin is a request in JSON. {"arguments": …, "output": FILE, "file_size": …,
"environment": …, "kill": …, "poison": …} is answered with the process's id; {"wait": ID,
"seconds": …} with its exit status (negative for a signal, -100 after too many seconds).
"""

import contextlib
import functools
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import datasets  # noqa: F401
import flax  # noqa: F401
import grain  # noqa: F401
from transformers import PreTrainedTokenizerFast  # noqa: F401

import train.checkpoint
import train.data.batches
import train.data.tables
import train.restore
import train.sft
from train.__main__ import main

# Python's names of changes of files.
CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "open", "os.link"}


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
        if request.get("kill"):
            kill_at(**request["kill"])
        if request.get("poison"):
            poison(*request["poison"])
        if request["arguments"][0] == "make-model":
            make_model(Path(request["arguments"][1]))
            return 0
        return main(request["arguments"])
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 70


def kill_at(
    function: str, call: int, changes: int | None, seconds: float, signals: list[int]
) -> None:
    """Sends this process signals at a call of a function.

    Args:
      function: MODULE:NAME, or "compiling": where a program is about to be compiled.
      call: the number of the call.
      changes: so many changes of files after it began; None: whatever is changed.
      seconds: else, so many seconds after it began.
      signals: SIGKILL, say; two at most.
    """
    calls, armed, changed = 0, False, 0
    left = iter(signals)

    def die() -> None:
        for number in left:
            os.kill(os.getpid(), number)

    def look(event: str, _: object) -> None:
        nonlocal changed
        if armed and event in CHANGES:
            changed += 1
            if changed > (changes or 0):
                die()

    def begins() -> None:
        nonlocal calls, armed
        calls += 1
        if calls != call:
            return
        armed = True
        if changes is None:
            timer = threading.Timer(seconds, die)
            timer.daemon = True
            timer.start()

    if changes is not None:
        sys.addaudithook(look)
    if function == "compiling":
        import jax

        jax.monitoring.register_event_duration_secs_listener(
            lambda event, *_, **__: begins() if event.endswith("to_mlir_module_duration") else None
        )
        return
    module, _, names = function.partition(":")
    *owners, name = names.split(".")
    owner: Any = functools.reduce(getattr, owners, importlib.import_module(module))
    setattr(owner, name, beginning(getattr(owner, name), begins))


def poison(first: int, last: int) -> None:
    """Makes the gradients of this process's rows not finite in these updates, counting from 1."""
    make = train.data.batches.Batches.batch

    def poisoned(self: Any, step: int, *local: Any) -> dict[str, Any]:
        arrays = make(self, step, *local)
        if first <= step + 1 <= last:
            arrays["weights"] *= float("inf")  # Where a token has no weight, NaN.
        return arrays

    train.data.batches.Batches.batch = poisoned


def beginning(function: Callable[..., Any], begins: Callable[[], None]) -> Callable[..., Any]:
    """A function that calls another first."""

    @functools.wraps(function)
    def both(*args: Any, **kwargs: Any) -> Any:
        begins()
        return function(*args, **kwargs)

    return both


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
