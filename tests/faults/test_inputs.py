"""Whatever a config, a record or a manifest holds: a fault in words, no other exception."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from train.config import load_config
from train.errors import UserError
from train.manifest import DamagedError, check_folder, write_manifest
from train.run import read_records

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
WORDS = (
    "0x_", "2024-02-30", "9" * 5000, "[" * 1500, "&a [*a]", "*a", ".inf", ".nan", "1e999", "-0",
    "!!python/object:os.system", "? ", "{", "}", "\0", "\x1b[2J", "é", "\udce9", "null", "~", ": ",
    "- ", "\t", "|", ">", "<<: *a", "true", "2147483648", "1_0", "'", '"', "\u2028", "%YAML 9.9",
)  # fmt: skip


def _mutated(text: bytes, draw: random.Random) -> bytes:
    data = bytearray(text)
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(len(data) + 1)
        match draw.randrange(4):
            case 0:
                data[place:place] = draw.choice(WORDS).encode(errors="surrogateescape")
            case 1:
                del data[place : place + draw.randint(1, 20)]
            case 2:
                data[place:place] = bytes([draw.randrange(256)])
            case 3:
                start = draw.randrange(len(data) + 1)
                data[place:place] = data[start : start + draw.randint(1, 60)]
    return bytes(data)


def _configs(folder: Path, draw: random.Random) -> None:
    file = folder / "config.yaml"
    source = draw.choice(sorted((ROOT / "configs").glob("*.yaml")))
    file.write_bytes(_mutated(source.read_bytes(), draw))
    load_config(file)


def _overrides(folder: Path, draw: random.Random) -> None:
    keys = ("steps", "epochs", "seed", "data.max_length", "optimizer.mask", "run", "batch.size")
    value = draw.choice([*WORDS, "1", "{kind: none}"]) + draw.choice(["", draw.choice(WORDS)])
    load_config(ROOT / "configs" / "quickstart.yaml", [f"{draw.choice(keys)}={value}"])


def _records(folder: Path, draw: random.Random) -> None:
    file = folder / "metrics.jsonl"
    lines = "".join(json.dumps({"step": n, "loss": 1 / (n + 1)}) + "\n" for n in range(5))
    file.write_bytes(_mutated(lines.encode(), draw))
    list(read_records(file))


def _manifests(folder: Path, draw: random.Random) -> None:
    (folder / "data").write_bytes(draw.randbytes(100))
    write_manifest(folder, {"step": 1})
    file = folder / "manifest.json"
    before = file.read_bytes()
    file.write_bytes(_mutated(before, draw))
    found = check_folder(folder)
    assert found.facts == {"step": 1}
    assert list(found.files) == ["data"], "what is vouched for is what was written"
    file.unlink()


@pytest.mark.parametrize("kind", [_configs, _overrides, _records, _manifests])
def test_a_mutated_input_is_read_or_refused(
    kind: Callable[[Path, random.Random], None], seed: int, tmp_path: Path
) -> None:
    for number in range(25):
        draw = random.Random(f"{seed} {number}")
        folder = tmp_path / str(number)
        folder.mkdir()
        message = ""
        try:
            kind(folder, draw)
        except (UserError, DamagedError) as fault:
            message = str(fault)
        assert len(message) < 20_000, (seed, number)
