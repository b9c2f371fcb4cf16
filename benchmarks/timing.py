"""How methods are timed and printed side by side."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

SLOW = 2.0  # seconds: a method slower than this is timed once
Method = Callable[[], Any]


def timed(methods: dict[str, Method], rounds: int) -> dict[str, float]:
    """The median seconds of each, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for method in methods.values():
        for _ in range(2):  # compiles, and again for arrays that lie otherwise by then
            jax.block_until_ready(method())
    for _ in range(rounds):
        for name, method in methods.items():
            if seconds[name] and seconds[name][0] > SLOW:
                continue
            start = time.perf_counter()
            jax.block_until_ready(method())
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def print_table(title: str, methods: dict[str, Method], floor: str, rounds: int) -> None:
    """One row a method, with its ratio to one of them."""
    results = timed(methods, rounds)
    print(f"\n{title}\n\n| | ms | of {floor} |\n|---|---|---|")
    for name, seconds in results.items():
        print(f"| {name} | {seconds * 1e3:,.2f} | {seconds / results[floor]:,.3f} |", flush=True)
