"""Files that are damaged, in every way, never change what is trained."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def _flip(file: Path, draw: random.Random, count: int) -> None:
    data = bytearray(file.read_bytes())
    for _ in range(count):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "one bit": lambda file, draw: _flip(file, draw, 1),
    "64 bits": lambda file, draw: _flip(file, draw, 64),
    "truncated": lambda file, draw: file.write_bytes(
        file.read_bytes()[: draw.randrange(max(1, file.stat().st_size))]
    ),
    "emptied": lambda file, draw: file.write_bytes(b""),
    "deleted": lambda file, draw: file.unlink(),
}


@pytest.mark.parametrize("what", ["checkpoints/6", "checkpoints/4", "export", "cache"])
def test_damage_is_noticed_and_mended(
    seed: int,
    draw: random.Random,
    what: str,
    zygote: Any,
    whole: Any,
    top: Path,
    write: Callable[..., Path],
    result: Callable[[Path], Any],
) -> None:
    expected, _ = whole("padded")
    file = write("padded")
    run = file.parent / "run"
    shutil.copytree(expected.parent / "run", run)
    (run / ".lock").unlink(missing_ok=True)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(expected.parent), str(file.parent)))
    folder = run / what
    if what == "cache":
        folder = top / "cache"
        shutil.rmtree(run / "checkpoints" / "6")
        shutil.rmtree(run / "export")
    victims = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size]
    victims = [p for p in victims if p.name != "README.md" and "xla" not in p.parts]
    victim = draw.choice(victims)
    damage = draw.choice(sorted(DAMAGES))
    DAMAGES[damage](victim, draw)
    process = zygote.start("sft", "--config", str(file), "--resume")
    assert process.wait() == 0, (victim, damage, process.text)
    assert "Traceback" not in process.text, process.text
    assert result(file) == result(expected), (victim, damage)
