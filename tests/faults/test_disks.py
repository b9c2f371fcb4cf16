"""A disk on which a write fails: a few clear lines, whole checkpoints, and a run that goes on."""

import contextlib
import random
import subprocess
from collections.abc import Callable, Iterator
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


def test_a_slow_disk_changes_nothing(
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
    expected, _ = whole("padded")
    file, slow = write("padded"), str(round(10 ** draw.uniform(3, 5.3)))
    count = file.parent / "count"
    count.write_bytes(bytes(8))
    under = {"FAILING_UNDER": str(file.parent / "run"), "FAILING_COUNT": str(count)}
    process = zygote.start(
        "sft", "--config", str(file), environment=under | {"FAILING_AT": "0", "FAILING_SLOW": slow}
    )
    assert process.wait() == 0, (slow, process.text)
    assert int.from_bytes(count.read_bytes(), "little") > 100, "it was slow"
    assert result(file) == result(expected), slow


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a small disk in memory, or gives one that is mounted another size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def mount(size: int) -> Path:
        nonlocal mounted
        options = f"{'remount,' if mounted else ''}size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            pytest.skip("this machine mounts no disk for us")
        mounted = True
        return folder

    with contextlib.suppress(FileNotFoundError):
        yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_run_on_a_full_disk_goes_on_when_there_is_room(
    seed: int,
    draw: random.Random,
    disk: Callable[[int], Path],
    zygote: Any,
    whole: Any,
    write: Callable[..., Path],
    result: Callable[[Path], Any],
) -> None:
    expected, _ = whole("padded")
    file, size = write("padded"), draw.randint(1, 300) * 4096
    folder = disk(size)
    (file.parent / "run").symlink_to(folder / "run")
    arguments = "sft", "--config", str(file), f"run={folder / 'run'}"
    process = zygote.start(*arguments)
    assert process.wait() in (0, 2), (size, process.text)
    assert "Traceback" not in process.text, (size, process.text)
    assert process.text.count("\n") < 40, (size, process.text)
    disk(1 << 26)
    process = zygote.start(*arguments, "--resume")
    assert process.wait() == 0, (size, process.text)
    assert result(file) == result(expected), size
