"""Manifests: whatever happens to a file of a folder is noticed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from train import manifest
from train.manifest import DamagedError, check_folder, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "60"
    (folder / "params").mkdir(parents=True)
    (folder / "params" / "data").write_bytes(bytes(range(256)) * 400)
    (folder / "empty").touch()
    write_manifest(folder, {"step": 60})
    return folder


def test_a_whole_folder_is_vouched_for(folder: Path) -> None:
    read: list[int] = []
    found = check_folder(folder, advance=read.append)
    assert found.facts == {"step": 60}
    assert found.num_bytes == sum(read) == 256 * 400


def test_contents_are_digested_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_PIECE", 1000)
    write_manifest(folder, {})
    check_folder(folder)
    data = bytearray((folder / "params" / "data").read_bytes())
    data[-1] ^= 1
    (folder / "params" / "data").write_bytes(data)
    with pytest.raises(DamagedError, match="params/data has other content"):
        check_folder(folder)


def _flip(data: bytes) -> bytes:
    return data[:5000] + bytes([data[5000] ^ 4]) + data[5001:]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda file: file.write_bytes(_flip(file.read_bytes())), "data has other content"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "has 102,399 of 102,400 bytes"),
        (lambda file: file.write_bytes(b""), "has 0 of 102,400 bytes"),
        (lambda file: file.unlink(), "params/data is missing"),
    ],
    ids=["flipped", "truncated", "emptied", "deleted"],
)
def test_damage_is_named(folder: Path, change: Callable[[Path], object], fault: str) -> None:
    change(folder / "params" / "data")
    with pytest.raises(DamagedError, match=fault):
        check_folder(folder)


def test_sizes_alone_are_compared_where_that_is_asked_for(folder: Path) -> None:
    file = folder / "params" / "data"
    file.write_bytes(_flip(file.read_bytes()))
    check_folder(folder, "size")
    check_folder(folder, share=(0, 2))  # "empty": the other process reads the data.
    with pytest.raises(DamagedError):
        check_folder(folder, share=(1, 2))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"digest": 1}', "[" * 100_000, "\xff"])
def test_a_manifest_that_is_none_is_damage(folder: Path, content: str) -> None:
    (folder / manifest.NAME).write_text(content, encoding="latin-1")
    with pytest.raises(DamagedError, match=r"manifest\.json is damaged"):
        read_manifest(folder)


def test_a_manifest_vouches_for_itself(folder: Path) -> None:
    file = folder / manifest.NAME
    content = json.loads(file.read_text())
    content["facts"]["step"] = 61
    file.write_text(json.dumps(content))
    with pytest.raises(DamagedError, match=r"manifest\.json is damaged"):
        read_manifest(folder)
    file.unlink()
    with pytest.raises(DamagedError, match=r"has no manifest\.json"):
        read_manifest(folder)
