"""Runs beside each other on a busy machine, each killed once, lose nothing."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_three_runs_at_once_are_killed_and_go_on_to_the_same_bits(
    seed: int,
    draw: random.Random,
    zygote: Any,
    whole: Any,
    write: Callable[..., Path],
    result: Callable[[Path], Any],
) -> None:
    kinds = ("padded", "packed", "lasting mask")
    expected, seconds = zip(*map(whole, kinds), strict=True)
    files = [write(kind) for kind in kinds]
    processes = [zygote.start("sft", "--config", str(file), "--resume") for file in files]
    time.sleep(draw.uniform(0, 3 * sum(seconds)))
    for process in processes:
        process.send()
        assert process.wait() in (0, -9), process.text
    processes = [zygote.start("sft", "--config", str(file), "--resume") for file in files]
    for process in processes:
        assert process.wait() == 0, process.text
    for file, other in zip(files, expected, strict=True):
        assert result(file) == result(other), seed
