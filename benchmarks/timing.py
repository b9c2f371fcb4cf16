"""Times methods in turn, says what it is doing, and prints the results side by side."""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

SLOW = 2.0  # seconds: a slower method is timed once
Method = Callable[[], Any]


def progress(message: str) -> None:
    """Writes a line to the error stream, so that tables can be redirected to a file."""
    print(message, file=sys.stderr, flush=True)


def timed(methods: dict[str, Method], rounds: int) -> dict[str, float]:
    """The median seconds of each method; all of them are run in turn, round after round."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for name, method in methods.items():
        start = time.perf_counter()
        for _ in range(2):  # compiles, and again where outputs are laid out otherwise than inputs
            jax.block_until_ready(method())
        progress(f"  compiled and ran {name} in {time.perf_counter() - start:,.1f} s")
    for number in range(1, rounds + 1):
        start = time.perf_counter()
        for name, method in methods.items():
            if seconds[name] and seconds[name][0] > SLOW:
                continue
            begin = time.perf_counter()
            jax.block_until_ready(method())
            seconds[name].append(time.perf_counter() - begin)
        progress(f"  round {number} of {rounds} took {time.perf_counter() - start:,.1f} s")
    return {name: statistics.median(times) for name, times in seconds.items()}


def print_table(title: str, methods: dict[str, Method], floor: str, rounds: int) -> None:
    """One row for each method, with its ratio to the method `floor`."""
    progress(f"{title}: {len(methods)} methods, {rounds} rounds")
    results = timed(methods, rounds)
    print(f"\n{title}\n\n| | ms | of {floor} |\n|---|---|---|")
    for name, seconds in results.items():
        print(f"| {name} | {seconds * 1e3:,.2f} | {seconds / results[floor]:,.3f} |", flush=True)
