"""What a compiled program's text says: the work and the network traffic of its loops."""

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
    size: int  # bytes of what it yields, all its operands together
    group: int  # devices that take part

    @property
    def sent(self) -> float:
        """Bytes that each device sends when the devices stand in a ring."""
        others = (self.group - 1) / self.group
        return {
            "all-reduce": 2 * others * self.size,
            "all-gather": others * self.size,
            "reduce-scatter": (self.group - 1) * self.size,
            "all-to-all": others * self.size,
            "collective-permute": float(self.size),
        }[self.kind]


class Cost(NamedTuple):
    """What one device does; multiplied by how often it does it."""

    cycles: int  # the compiler's estimate of its kernels, without the network; 0: it gives none
    times: Counter[Collective]


class ProgramCost(NamedTuple):
    """A program's work. Of a loop whose length depends on the data, one round is told."""

    step: Cost
    rounds: list[Cost]  # of each such loop


def computations(text: str) -> dict[str, str]:
    """The bodies of a program's computations by name; that of the program itself is ENTRY."""
    # From heading to heading: a kernel's own text in a body may have lines that begin with a brace.
    pieces = re.split(r"^(ENTRY )?(%[\w.-]+) \(.*\{$", text, flags=re.MULTILINE)[1:]
    return {
        "ENTRY" if entry else name: body
        for entry, name, body in zip(*(pieces[at::3] for at in range(3)), strict=True)
    }


def cycles(body: str) -> int:
    """The compiler's estimate for the kernels that a computation itself starts."""
    return sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', body)))


def collectives(
    body: str, devices: int = 1, channels: set[str] | None = None
) -> Iterator[Collective]:
    """The collectives in a text, each once; `devices` take part in one that names no groups.

    Args:
      channels: those of collectives told already, to which these are added. A TPU's compiler
        cuts one into steps that lie in several kernels, beside other work, and share a channel.
    """
    channels = set() if channels is None else channels
    pattern = rf" = (.*?) ({'|'.join(COLLECTIVES)})(-start)?\((.*)"
    for yields, kind, start, rest in re.findall(pattern, body):
        if channel := re.search(r"channel_id=(\d+)", rest):
            if channel[1] in channels:
                continue
            channels.add(channel[1])
        shapes = re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", yields)
        if start and kind in ("all-gather", "collective-permute"):
            shapes = _second(shapes)  # The first are its operands.
        size = sum(
            BYTES[dtype] * math.prod(map(int, filter(None, sides.split(","))))
            for dtype, sides in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        )
        yield Collective(kind, size, _group(rest, devices))


def _second(shapes: str) -> str:
    """The second part of `(f32[1], f32[4], …)` or `((f32[1], …), (f32[4], …))`."""
    if nested := re.findall(r"\(([^()]*)\)", shapes)[1:2]:
        return str(nested[0])
    return str(re.findall(r"\w+\[[\d,]*\]", shapes)[1])


def _group(rest: str, devices: int) -> int:
    """How many devices a collective joins, in the three ways in which that is written."""
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(counted[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return listed[1].count(",") + 1
    if named := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest):
        sizes = dict(re.findall(r"('[^']+')=(\d+)", named[1]))
        # Of an axis that is taken in part, 'a':(2)4 says how much: 4.
        parts = re.findall(r"('[^']+')(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    return devices


def program_cost(text: str) -> ProgramCost:
    """Follows a program from its entry through its loops, branches (all of them) and calls."""
    parts = computations(text)
    said = re.search(r"num_partitions=(\d+)", text)
    devices = int(said[1]) if said else 1
    works = [Cost(0, Counter())]

    def visit(name: str, times: int, work: int, channels: set[str], fused: bool = False) -> None:
        body = parts[name]
        counted = works[work].times
        for each in collectives(body, devices, channels):
            counted[each] += times
        own = 0 if fused else cycles(body)  # A fused kernel's are said where it is started.
        works[work] = Cost(works[work].cycles + times * own, counted)
        for kind, rest in re.findall(r" (while|conditional|call|fusion|async-start)\((.*)", body):
            if kind != "while":
                for callee in _callees(rest):
                    visit(callee, times, work, channels, kind == "fusion")
                continue
            condition, inner = _loop(rest)
            rounds = _rounds(rest, parts[condition], parts[inner])
            if rounds is None:
                works.append(Cost(0, Counter()))
                visit(inner, 1, len(works) - 1, set())
            else:
                visit(inner, times * rounds, work, set())

    visit("ENTRY", 1, 0, set())
    return ProgramCost(works[0], works[1:])


def _loop(rest: str) -> tuple[str, str]:
    """The names of a loop's condition and body."""
    found = re.search(r"condition=(%[\w.-]+), body=(%[\w.-]+)", rest)
    assert found, "a loop has a condition and a body"
    return found[1], found[2]


def _callees(rest: str) -> list[str]:
    if several := re.search(r"branch_computations=\{(.*?)\}", rest):
        return several[1].split(", ")
    return re.findall(r"(?:calls|to_apply|(?:true|false)_computation)=(%[\w.-]+)", rest)


def _rounds(loop: str, condition: str, body: str) -> int | None:
    """How many rounds a loop has, where it does no more than count: from 0, as XLA has them."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop):
        return int(known[1])
    test = re.search(r"ROOT .* compare\((%[\w.-]+), (%[\w.-]+)\), direction=LT", condition)
    if not test:
        return None
    place = re.search(rf"{re.escape(test[1])} = .*index=(\d+)", condition)
    bound = _constant(test[2], condition)
    result = re.search(r"ROOT .* tuple\((.*?)\)", body)
    if not (place and bound and result):
        return None
    counter = re.findall(r"%[\w.-]+", result[1])[int(place[1])]
    added = re.search(rf"{re.escape(counter)} = .* add\((%[\w.-]+), (%[\w.-]+)\)", body)
    stride = added and (_constant(added[1], body) or _constant(added[2], body))
    return math.ceil(bound / stride) if stride else None


def _constant(name: str, body: str) -> int | None:
    found = re.search(rf"{re.escape(name)} = .* constant\((\d+)\)", body)
    return int(found[1]) if found else None
