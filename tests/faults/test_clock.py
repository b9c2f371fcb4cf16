"""A time of day that jumps changes nothing: neither what is trained nor when it is saved."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
DAY = 86400


def test_a_clock_that_jumps_changes_nothing(
    seed: int,
    draw: random.Random,
    failing: Path | None,
    zygote: Any,
    whole: Any,
    write: Callable[..., Path],
    result: Callable[[Path], Any],
) -> None:
    if failing is None:
        pytest.skip("needs a C compiler")
    expected, seconds = whole("padded")
    file, by = write("padded"), draw.choice([-1, 1]) * draw.choice([3600, DAY, 4000 * DAY])
    jump = {"JUMP_AFTER": str(round(draw.uniform(0, seconds))), "JUMP_BY": str(by)}
    # So long a time passes by no clock but the one that jumps.
    arguments = "sft", "--config", str(file), "checkpoint.every=100", "checkpoint.minutes=30"
    process = zygote.start(*arguments, environment=jump)
    assert process.wait() == 0, (jump, process.text)
    assert result(file) == result(expected), jump
    saved = [path.name for path in (file.parent / "run/checkpoints").iterdir()]
    assert saved == ["6"], "none was saved before its time"
