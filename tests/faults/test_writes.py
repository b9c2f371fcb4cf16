"""One change of a run's files fails, at any of them: a few clear lines, and a run that goes on.

As many draws as a run has changes, some 440, try every one of them once.
"""

import errno
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
STRIDE = 197  # A prime, so that seeds in turn visit all changes, and the first few all parts.
REASONS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)


@pytest.fixture(scope="session")
def counted(
    zygote: Any, whole: Any, write: Callable[..., Path], failing: Path | None
) -> Callable[..., tuple[Any, int]]:
    """Starts a run of which one change fails, or all from one on; returns it and the changes."""
    if failing is None:
        pytest.skip("needs a C compiler")

    def start(file: Path, at: int, forever: bool = False, reason: int = 0) -> tuple[Any, int]:
        count = file.parent / "count"
        count.write_bytes(bytes(8))
        environment = {
            "FAILING_UNDER": str(file.parent / "run"),
            "FAILING_COUNT": str(count),
            "FAILING_AT": str(at),
            "FAILING_FOREVER": str(int(forever)),
            "FAILING_ERRNO": str(reason),
        }
        arguments = "sft", "--config", str(file)
        process = zygote.start(*arguments, environment=environment)
        process.status = process.wait()
        return process, int.from_bytes(count.read_bytes(), "little")

    return start


@pytest.fixture(scope="session")
def num_changes(counted: Any, whole: Any, write: Callable[..., Path]) -> int:
    """The changes of a run in which none fails."""
    whole("padded")
    process, changes = counted(write("padded"), 0)
    assert process.status == 0, process.text
    assert changes > 100
    return int(changes)


@pytest.mark.parametrize("forever", [False, True], ids=["once", "from then on"])
def test_a_run_of_which_a_change_fails_goes_on_when_none_does(
    seed: int,
    draw: random.Random,
    forever: bool,
    counted: Any,
    num_changes: int,
    zygote: Any,
    whole: Any,
    write: Callable[..., Path],
    result: Callable[[Path], Any],
) -> None:
    expected, _ = whole("padded")
    file, at, reason = write("padded"), 1 + seed * STRIDE % num_changes, draw.choice(REASONS)
    process, changes = counted(file, at, forever, reason)
    fault = f"change {at} of {num_changes}: {errno.errorcode[reason]}\n{process.text}"
    assert changes >= at or process.status == 0, fault
    assert process.status in (0, 2), fault
    assert "Traceback" not in process.text, fault
    assert process.text.count("\n") < 40, fault
    process = zygote.start("sft", "--config", str(file), "--resume")
    assert process.wait() == 0, fault + process.text
    assert result(file) == result(expected), fault
