"""The filter's instructions, read as the kernel reads them."""

import struct

import pytest

from train.evaluate import guard

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
X86, ARM = 0xC000003E, 0xC00000B7


def _verdict(machine: str, number: int, *args: int, arch: int | None = None) -> int:
    """What the filter returns for a call: a classic BPF machine with an accumulator."""
    arch = guard.MACHINES[machine][1] if arch is None else arch
    data = struct.pack("<IIQ6Q", number, arch, 0, *args, *[0] * (6 - len(args)))
    code = guard.make_filter(machine)
    program = [struct.unpack("HBBI", code[at : at + 8]) for at in range(0, len(code), 8)]
    value = at = 0
    while True:
        operation, yes, no, operand = program[at]
        at += 1
        if operation == 0x06:
            return operand
        if operation == 0x20:
            (value,) = struct.unpack_from("<I", data, operand)
            continue
        taken = {
            0x15: value == operand, 0x45: bool(value & operand), 0x35: value >= operand
        }[operation]  # fmt: skip
        at += yes if taken else no


@pytest.mark.parametrize(
    ("machine", "read", "openat", "clone", "socket", "execve", "unlinkat", "kill"),
    [("x86_64", 0, 257, 56, 41, 59, 263, 62), ("aarch64", 63, 56, 220, 198, 221, 35, 129)],
)
def test_reading_passes_and_the_rest_is_refused(
    machine: str, read: int, openat: int, clone: int, socket: int, execve: int, unlinkat: int,
    kill: int,
) -> None:  # fmt: skip
    assert _verdict(machine, read) == ALLOW
    assert [_verdict(machine, n) for n in (socket, execve, unlinkat, kill, 9999)] == [EPERM] * 5
    reading, close_on_exec = 0, 0o2000000
    assert _verdict(machine, openat, 0, 0, reading | close_on_exec) == ALLOW
    for flag in (1, 2, 0o100, 0o1000):
        assert _verdict(machine, openat, 0, 0, flag | close_on_exec) == EPERM
    assert _verdict(machine, clone, 0x3D0F00) == ALLOW  # A thread, as glibc starts one.
    assert _verdict(machine, clone, 0x1200011) == EPERM  # A process.
    assert _verdict(machine, 435) == ENOSYS


def test_calls_of_another_architecture_end_the_process() -> None:
    assert _verdict("x86_64", 0, arch=0x40000003) == KILL
    assert _verdict("aarch64", 63, arch=X86) == KILL
    assert _verdict("x86_64", 0x40000000) == KILL  # The x32 numbers.


def test_a_file_is_not_opened_for_writing_by_the_old_call() -> None:
    assert _verdict("x86_64", 2, 0, 0) == ALLOW
    assert _verdict("x86_64", 2, 0, 0o101) == EPERM
