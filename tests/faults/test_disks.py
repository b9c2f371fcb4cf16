"""A disk on which a write fails: a few clear lines, whole checkpoints, and a run that goes on."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_a_run_whose_files_cannot_grow_goes_on_when_they_can(
    seed: int,
    draw: random.Random,
    zygote: Any,
    whole: Any,
    write: Callable[..., Path],
    result: Callable[[Path], Any],
) -> None:
    expected, _ = whole("padded")
    file = write("padded")
    limit = round(10 ** draw.uniform(1, 5.5))  # Bytes a file can have; the largest has 200,000.
    process = zygote.start("sft", "--config", str(file), file_size=limit)
    assert process.wait() in (0, 2), (limit, process.text)
    assert "Traceback" not in process.text, (limit, process.text)
    assert process.text.count("\n") < 40, (limit, process.text)
    process = zygote.start("sft", "--config", str(file), "--resume")
    assert process.wait() == 0, (limit, process.text)
    assert result(file) == result(expected), limit
