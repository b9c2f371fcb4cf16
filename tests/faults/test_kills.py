"""Runs that are killed or stopped at random moments end with the bits of the uninterrupted run."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
KINDS = ("padded", "packed", "bucketed", "streamed", "accumulated", "random mask", "lasting mask")
RESUME_STATUS = 75


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_that_is_ended_goes_on_to_the_same_bits(
    seed: int,
    draw: random.Random,
    number: signal.Signals,
    zygote: Any,
    whole: Any,
    write: Callable[..., Path],
    result: Callable[[Path], Any],
) -> None:
    kind = KINDS[seed % len(KINDS)]
    expected, seconds = whole(kind)
    file = write(kind)
    for _ in range(draw.randint(1, 3)):
        process = zygote.start("sft", "--config", str(file), "--resume")
        time.sleep(draw.uniform(0, seconds))
        process.send(number)
        if number != signal.SIGKILL and draw.random() < 0.2:
            process.send(number)
        status = process.wait()
        assert status in (0, -number, RESUME_STATUS), (status, process.text)
        assert "Traceback" not in process.text, process.text
    process = zygote.start("sft", "--config", str(file), "--resume")
    assert process.wait() == 0, process.text
    assert result(file) == result(expected)
    left = {path.name for path in (file.parent / "run").iterdir()} - {".lock"}
    assert left == {path.name for path in (expected.parent / "run").iterdir()} - {".lock"}
