"""Reads the kernels' cycles and the network traffic of a compiled program from its text."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16} | {
    f"{kind}{bits}": bits // 8 for kind in "su" for bits in (8, 16, 32, 64)
}


class Collective(NamedTuple):
    """One operation between devices."""

    kind: str
    size: int  # bytes of its results, all operands together
    group: int  # devices that take part

    @property
    def sent(self) -> float:
        """Bytes that each device sends if the devices form a ring."""
        others = (self.group - 1) / self.group
        return {
            "all-reduce": 2 * others * self.size,
            "all-gather": others * self.size,
            "reduce-scatter": (self.group - 1) * self.size,
            "all-to-all": others * self.size,
            "collective-permute": float(self.size),
        }[self.kind]


class Cost(NamedTuple):
    """Cycles and collectives of one device, counted as often as they run."""

    cycles: int  # the compiler's estimate for kernels, without the network; 0 if it gives none
    collectives: Counter[Collective]


class ProgramCost(NamedTuple):
    """The cost of a program; a loop whose length depends on the data is listed apart."""

    step: Cost
    passes: list[Cost]  # the cost of one round of each such loop


def split_computations(text: str) -> dict[str, str]:
    """The bodies of a program's computations by name; the program's own body is ENTRY."""
    # Split at headings, as a kernel's text in a body may have lines that begin with a brace.
    pieces = re.split(r"^(ENTRY )?(%[\w.-]+) \(.*\{$", text, flags=re.MULTILINE)[1:]
    return {
        "ENTRY" if entry else name: body
        for entry, name, body in zip(*(pieces[offset::3] for offset in range(3)), strict=True)
    }


def estimated_cycles(body: str) -> int:
    """The compiler's estimate for the kernels that a computation itself starts."""
    return sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', body)))


def find_collectives(
    body: str, devices: int = 1, channels: set[str] | None = None
) -> Iterator[Collective]:
    """Yields the collectives in a computation's body, each once.

    Args:
      devices: how many take part in a collective that names no groups.
      channels: the channels of collectives counted before; those found are added. The TPU compiler
        cuts a collective into steps in several kernels, which share a channel.
    """
    channels = set() if channels is None else channels
    pattern = rf" = (.*?) ({'|'.join(COLLECTIVES)})(-start)?\((.*)"
    for results, kind, start, rest in re.findall(pattern, body):
        if channel := re.search(r"channel_id=(\d+)", rest):
            if channel[1] in channels:
                continue
            channels.add(channel[1])
        shapes = re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", results)
        if start and kind in ("all-gather", "collective-permute"):
            shapes = _second_part(shapes)  # The first part describes its operands.
        size = sum(
            BYTES[dtype] * math.prod(map(int, filter(None, sizes.split(","))))
            for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        )
        yield Collective(kind, size, _group_size(rest, devices))


def _second_part(shapes: str) -> str:
    """The second part of `(f32[1], f32[4], …)` or `((f32[1], …), (f32[4], …))`."""
    if nested := re.findall(r"\(([^()]*)\)", shapes)[1:2]:
        return str(nested[0])
    return str(re.findall(r"\w+\[[\d,]*\]", shapes)[1])


def _group_size(rest: str, devices: int) -> int:
    """How many devices a collective joins, in any of the three notations for groups."""
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(counted[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return listed[1].count(",") + 1
    if named := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest):
        sizes = dict(re.findall(r"('[^']+')=(\d+)", named[1]))
        # An axis that is used in part is written 'a':(2)4, where 4 is the size used.
        parts = re.findall(r"('[^']+')(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    return devices


def program_cost(text: str) -> ProgramCost:
    """Adds up a program from its entry through its loops, branches (all of them) and calls."""
    bodies = split_computations(text)
    partitions = re.search(r"num_partitions=(\d+)", text)
    devices = int(partitions[1]) if partitions else 1
    costs = [Cost(0, Counter())]  # of the program, then of one round of each open-ended loop

    def visit(name: str, times: int, index: int, channels: set[str], fused: bool = False) -> None:
        """Adds a computation that runs so many times to costs[index]."""
        body = bodies[name]
        cycles, counts = costs[index]
        for collective in find_collectives(body, devices, channels):
            counts[collective] += times
        # The cycles of a fused kernel are given where it is started.
        own_cycles = 0 if fused else estimated_cycles(body)
        costs[index] = Cost(cycles + times * own_cycles, counts)
        for kind, rest in re.findall(r" (while|conditional|call|fusion|async-start)\((.*)", body):
            if kind != "while":
                for callee in _callees(rest):
                    visit(callee, times, index, channels, kind == "fusion")
                continue
            condition, inner = _loop(rest)
            rounds = _num_rounds(rest, bodies[condition], bodies[inner])
            if rounds is None:
                costs.append(Cost(0, Counter()))
                visit(inner, 1, len(costs) - 1, set())
            else:
                visit(inner, times * rounds, index, set())

    visit("ENTRY", 1, 0, set())
    return ProgramCost(costs[0], costs[1:])


def _loop(rest: str) -> tuple[str, str]:
    """The names of a loop's condition and body."""
    names = re.search(r"condition=(%[\w.-]+), body=(%[\w.-]+)", rest)
    assert names, "a loop has a condition and a body"
    return names[1], names[2]


def _callees(rest: str) -> list[str]:
    """The names of the computations that a conditional, call or fusion runs."""
    if several := re.search(r"branch_computations=\{(.*?)\}", rest):
        return several[1].split(", ")
    return re.findall(r"(?:calls|to_apply|(?:true|false)_computation)=(%[\w.-]+)", rest)


def _num_rounds(loop: str, condition: str, body: str) -> int | None:
    """The number of rounds of a loop that counts up from 0; None if it depends on the data."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop):
        return int(known[1])
    test = re.search(r"ROOT .* compare\((%[\w.-]+), (%[\w.-]+)\), direction=LT", condition)
    if not test:
        return None
    position = re.search(rf"{re.escape(test[1])} = .*index=(\d+)", condition)
    bound = _constant(test[2], condition)
    result = re.search(r"ROOT .* tuple\((.*?)\)", body)
    if not (position and bound and result):
        return None
    counter = re.findall(r"%[\w.-]+", result[1])[int(position[1])]
    terms = re.search(rf"{re.escape(counter)} = .* add\((%[\w.-]+), (%[\w.-]+)\)", body)
    stride = terms and (_constant(terms[1], body) or _constant(terms[2], body))
    return math.ceil(bound / stride) if stride else None


def _constant(name: str, body: str) -> int | None:
    """The value of an integer constant, or None if the name is not one."""
    constant = re.search(rf"{re.escape(name)} = .* constant\((\d+)\)", body)
    return int(constant[1]) if constant else None
