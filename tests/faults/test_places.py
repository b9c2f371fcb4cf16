"""Runs in a bucket, and of two processes, are killed and go on to the same bits."""

import random
import signal
import socket
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
KINDS = ("padded", "packed", "bucketed", "streamed", "accumulated", "random mask", "lasting mask")
RESUME_STATUS = 75

Start = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def start(zygote: Any) -> Start:
    """Starts the processes of a run."""

    def starts(file: Path, count: int, *arguments: str, **options: Any) -> list[Any]:
        command = ["sft", "--config", str(file), "--resume", *arguments]
        if count > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            command += ["--coordinator-address", address, "--num-processes", str(count)]
        ids = [["--process-id", str(number)] if count > 1 else [] for number in range(count)]
        return [zygote.start(*command, *own, **options) for own in ids]

    return starts


@pytest.fixture(scope="session")
def uninterrupted(start: Start, whole: Any, write: Callable[..., Path]) -> Any:
    """The config of a finished run in a folder of so many processes, and its seconds."""

    @cache
    def of(kind: str, count: int) -> tuple[Path, float]:
        if count == 1:
            found: tuple[Path, float] = whole(kind)
            return found
        for _ in range(2):  # The second finds compiled programs.
            file, since = write(kind), time.monotonic()
            _end(start(file, count))
        return file, time.monotonic() - since

    return of


def _end(processes: list[Any]) -> None:
    """Waits for processes that are to finish."""
    for process in processes:
        assert process.wait() == 0, process.text


@pytest.mark.parametrize(
    ("in_bucket", "count"),
    [(True, 1), (False, 2), (True, 2)],
    ids=["bucket", "two processes", "bucket, two processes"],
)
def test_a_run_that_is_killed_anywhere_goes_on_to_the_same_bits(
    seed: int,
    draw: random.Random,
    in_bucket: bool,
    count: int,
    start: Start,
    uninterrupted: Any,
    write: Callable[..., Path],
    result: Callable[[Path], Any],
    request: pytest.FixtureRequest,
) -> None:
    kind = KINDS[seed % len(KINDS)]
    expected, seconds = uninterrupted(kind, count)
    file = write(kind)
    arguments: list[str] = []
    options: dict[str, Any] = {}
    if in_bucket:
        bucket = request.getfixturevalue("bucket")
        arguments, options = bucket.settings(file), {"environment": bucket.environment}
        seconds *= 1.5  # Uploads take their time.
    for _ in range(draw.randint(1, 3)):
        number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        processes = start(file, count, *arguments, **options)
        time.sleep(draw.uniform(0, seconds))
        for process in draw.sample(processes, draw.randint(1, count)):
            process.send(number)
        # jax ends a process whose coordinator is gone, if that is not noticed before.
        ends = (0, 2, -number, RESUME_STATUS, *([-signal.SIGABRT] if count > 1 else []))
        for process in processes:
            status = process.wait()
            assert status in ends, (status, process.text)
            assert "Traceback" not in process.text, process.text
    _end(start(file, count, *arguments, **options))
    if in_bucket:
        bucket.download(file)
    assert result(file) == result(expected)
    left = {path.name for path in (file.parent / "run").iterdir()} - {".lock"}
    assert left == {path.name for path in (expected.parent / "run").iterdir()} - {".lock"}


FAULTS = {
    "refuses": {"status": 403},
    "fails for a while": {"status": 503, "requests": 4},
    "is slow": {"delay": 0.1},
}


@pytest.mark.parametrize("how", FAULTS)
def test_a_run_whose_bucket_fails_at_some_request_goes_on_when_it_does_not(
    seed: int,
    draw: random.Random,
    how: str,
    bucket: Any,
    start: Start,
    whole: Any,
    write: Callable[..., Path],
    result: Callable[[Path], Any],
) -> None:
    expected, _ = whole("padded")
    file, after = write("padded"), draw.randint(0, 250)  # Where a run makes fewer, none fails.
    fault = dict(FAULTS[how])
    if requests := fault.pop("requests", None):
        fault["until"] = after + requests
    arguments, options = bucket.settings(file), {"environment": bucket.environment}
    bucket.fail(**fault, after=after)
    try:
        (process,) = start(file, 1, *arguments, **options)
        ended = process.wait()
    finally:
        bucket.mend()
    assert ended in ((0, 2) if how == "refuses" else (0,)), (after, process.text)
    assert "Traceback" not in process.text, (after, process.text)
    assert process.text.count("\n") < 60, (after, process.text)
    _end(start(file, 1, *arguments, **options))
    bucket.download(file)
    assert result(file) == result(expected), (after, process.text)
