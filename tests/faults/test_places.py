"""Runs in a bucket, and of two processes, go on to the same bits after any fault."""

import random
import signal
import socket
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.slow
KINDS = ("padded", "packed", "bucketed", "streamed", "accumulated", "random mask", "lasting mask")
RESUME_STATUS = 75

Start = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def start(zygote: Any) -> Start:
    """Starts the processes of a run; some with options of their own."""

    def starts(
        file: Path,
        count: int,
        *arguments: str,
        own: Sequence[dict[str, Any]] = (),
        **options: Any,
    ) -> list[Any]:
        command = ["sft", "--config", str(file), "--resume", *arguments]
        if count > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            command += ["--coordinator-address", address, "--num-processes", str(count)]
        ids = [["--process-id", str(number)] if count > 1 else [] for number in range(count)]
        each = [options | its for its in own or [{}] * count]
        return [zygote.start(*command, *id, **its) for id, its in zip(ids, each, strict=True)]

    return starts


@pytest.fixture(scope="session")
def uninterrupted(start: Start, whole: Any, write: Callable[..., Path]) -> Any:
    """The config of a finished run in a folder of so many processes, and its seconds."""

    @cache
    def of(kind: str, count: int) -> tuple[Path, float]:
        if count == 1:
            found: tuple[Path, float] = whole(kind)
            return found
        file, since = write(kind), time.monotonic()
        _end(start(file, count))
        return file, (time.monotonic() - since) / 2  # The others find compiled programs.

    return of


def _end(processes: list[Any]) -> None:
    """Waits for processes that are to finish."""
    for process in processes:
        assert process.wait() == 0, process.text


class Moment(NamedTuple):
    """A function that a run calls so many times, or more; process 0 alone, maybe."""

    function: str
    calls: int
    first_alone: bool = False


MOMENTS = {  # In the order in which a run that is killed at each still comes to the next.
    "reading data": Moment("train.sft:_open", 1),
    "loading": Moment("train.sft:load_params", 1),
    "compiling": Moment("compiling", 40),
    "stepping": Moment("train.checkpoint:Checkpoints.poll", 3),
    "evaluating": Moment("train.loop:_Calls.evaluate", 2),
    "saving": Moment("train.checkpoint:Checkpoints.save", 2),
    "committing": Moment("train.checkpoint_folder:CheckpointFolder.commit", 2, True),
    "pruning": Moment("train.checkpoint_folder:CheckpointFolder._remove", 1, True),
    "restoring": Moment("train.checkpoint:Checkpoints.restore", 1),
    "exporting": Moment("train.sft:export", 1),
    "reporting": Moment("train.sft:print_report", 1),
}


def _plan(seed: int, draw: random.Random) -> list[str | None]:
    """The moments of a draw's kills in their order; None is any moment."""
    names = {list(MOMENTS)[seed % len(MOMENTS)], *draw.sample(list(MOMENTS), draw.randint(1, 3))}
    if "restoring" in names:
        names.add("pruning")  # When there is something to restore.
    return [*([None] if draw.random() < 0.3 else []), *sorted(names, key=list(MOMENTS).index)]


def _moment(name: str, first: bool, writes: bool, draw: random.Random) -> dict[str, Any]:
    """How a process kills itself at a named moment: at a change of files in it, or after a time."""
    moment = MOMENTS[name]
    return {
        "function": moment.function,
        "call": draw.randint(1, moment.calls if first else 1),
        "changes": draw.randint(0, 12) if writes and draw.random() < 0.5 else None,
        "seconds": draw.choice([0, draw.uniform(0, 0.5)]),
        "signals": [signal.SIGKILL],
    }


@pytest.mark.parametrize(
    ("in_bucket", "count", "apart"),
    [(False, 1, False), (True, 1, False), (False, 2, False), (True, 2, False), (True, 2, True)],
    ids=["folder", "bucket", "two processes", "bucket, two processes", "bucket, two machines"],
)
def test_a_run_that_is_killed_anywhere_goes_on_to_the_same_bits(
    seed: int,
    in_bucket: bool,
    count: int,
    apart: bool,
    start: Start,
    uninterrupted: Any,
    write: Callable[..., Path],
    result: Callable[[Path], Any],
    note: Callable[..., None],
    request: pytest.FixtureRequest,
) -> None:
    kind = KINDS[seed % len(KINDS)]
    expected, seconds = uninterrupted(kind, count)
    file = write(kind)
    arguments: list[str] = []
    options: list[dict[str, Any]] = [{} for _ in range(count)]
    if in_bucket:
        bucket = request.getfixturevalue("bucket")
        arguments, homes = bucket.settings(file), [str(file.parent / f"home-{n}") for n in (0, 1)]
        own = [{"XDG_CACHE_HOME": homes[number]} if apart else {} for number in range(count)]
        options = [{"environment": bucket.environment | of_one} for of_one in own]
        seconds *= 1.5  # Uploads take their time.
    draw = random.Random(f"{seed} {in_bucket} {count}{' apart' * apart}")
    plan = _plan(seed + 3 * in_bucket + 5 * count, draw)
    if "compiling" in plan:  # Nothing was compiled before.
        arguments.append(f"cache={file.parent / 'cache'}")
    for number_of_kill, name in enumerate(plan):
        number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        first, since = draw.randrange(count), time.monotonic()
        if name is None:
            processes = start(file, count, *arguments, own=options)
            time.sleep(draw.uniform(0, 0.6 * seconds))  # The others are still to come.
            processes[first].send(number)
        else:
            number, first = signal.SIGKILL, 0 if MOMENTS[name].first_alone else first
            kill = {"kill": _moment(name, number_of_kill == 0, first == 0, draw)}
            own = [of_one | (kill if n == first else {}) for n, of_one in enumerate(options)]
            processes = start(file, count, *arguments, own=own)
        statuses = {first: processes[first].wait()}
        all_die = draw.random() < 0.5
        for other in set(range(count)) - {first}:
            if all_die:
                processes[other].send(number)
            statuses[other] = processes[other].wait()
        passed = round(time.monotonic() - since, 1)
        note(seed=seed, kind=kind, moment=name, statuses=statuses, seconds=passed)
        # The loss of one ends the others: here, or by jax, if that is not noticed before.
        ends = (0, -number, RESUME_STATUS, *((2, -signal.SIGABRT) if count > 1 else ()))
        for process, status in ((processes[n], status) for n, status in statuses.items()):
            assert status in ends, (name, status, process.text)
            assert "Traceback" not in process.text, (name, process.text)
    _end(start(file, count, *arguments, own=options))
    if in_bucket:
        bucket.download(file)
    assert result(file) == result(expected), plan
    left = {path.name for path in (file.parent / "run").iterdir()} - {".lock"}
    assert left == {path.name for path in (expected.parent / "run").iterdir()} - {".lock"}
    note(seed=seed, kind=kind, resumed=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heard_at_any_moment(
    seed: int,
    draw: random.Random,
    number: signal.Signals,
    start: Start,
    whole: Any,
    write: Callable[..., Path],
    result: Callable[[Path], Any],
    note: Callable[..., None],
) -> None:
    kind = KINDS[seed % len(KINDS)]
    expected, _ = whole(kind)
    file, plan = write(kind), _plan(seed, draw)
    for name in filter(None, plan):
        times = draw.randint(1, 2)
        how = _moment(name, name == plan[0], True, draw) | {"signals": [number] * times}
        (process,) = start(file, 1, kill=how)
        status = process.wait()
        note(seed=seed, kind=kind, moment=name, signal=number, times=times, statuses={0: status})
        assert status in (0, -number, RESUME_STATUS), (name, status, process.text)
        assert "Traceback" not in process.text, (name, process.text)
    _end(start(file, 1))
    assert result(file) == result(expected), plan


@pytest.mark.parametrize("last", [3, 6], ids=["once", "from then on"])
def test_gradients_that_are_not_finite_in_one_process_of_two_change_nothing(
    seed: int,
    last: int,
    start: Start,
    uninterrupted: Any,
    write: Callable[..., Path],
    result: Callable[[Path], Any],
) -> None:
    """The third update is skipped by both: to the bits of a run of which the other's are not."""
    kind = ("padded", "packed", "bucketed", "random mask", "lasting mask")[seed % 5]
    files, either = [write(kind), write(kind)], (seed % 2, 1 - seed % 2)
    for file, number in zip(files, either, strict=True):
        own = [{"poison": (3, last)} if n == number else {} for n in range(2)]
        processes = start(file, 2, own=own)
        for process in processes:
            assert process.wait() == (2 if last > 3 else 0), process.text
            assert "Traceback" not in process.text, process.text
        if last > 3:
            assert "steps 3 to 5 were skipped" in processes[0].text
            _end(start(file, 2))
    found, other = map(result, files)
    assert found == other
    skipped = [record["step"] for record in found[1] if "skipped" in record]
    assert skipped == ([3, 4] if last > 3 else [3])
    assert found != result(uninterrupted(kind, 2)[0])


def test_a_run_of_machines_that_share_no_folder_is_read_by_one(
    bucket: Any, start: Start, write: Callable[..., Path], zygote: Any
) -> None:
    file = write("padded")
    homes = [{"XDG_CACHE_HOME": str(file.parent / name)} for name in "ab"]
    own = [{"environment": bucket.environment | home} for home in homes]
    _end(start(file, 2, *bucket.settings(file), own=own))
    address = bucket.settings(file)[0].removeprefix("run=")
    process = zygote.start("verify", address, environment=bucket.environment)
    assert process.wait() == 0, process.text
    assert "can be resumed from step 6" in process.text


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
