"""Digests change with the contents and with nothing else."""

from pathlib import Path

import pytest

from train.data.digest import digest, digest_files, digest_samples


def test_parts_are_kept_apart() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("a", 1) == digest("a", "1")
    assert digest() != digest("")


def test_files_count_by_their_contents(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("x"), b.write_text("x")
    assert digest_files([a]) == digest_files([b])
    before = digest_files([a, b])
    b.write_text("y")
    assert digest_files([a]) != digest_files([b])
    assert digest_files([a, b]) != before != digest_files([b, a])


def test_large_files_count_by_their_sizes_and_by_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.data.digest._PIECE", 10)
    file = tmp_path / "a"
    content = bytes(range(256)) * 10
    file.write_bytes(content)
    before = digest_samples([file])
    for place in (0, 5, len(content) - 1):
        file.write_bytes(content[:place] + b"\xaa" + content[place + 1 :])
        assert digest_samples([file]) != before
    file.write_bytes(content + b"x")
    assert digest_samples([file]) != before
    file.write_bytes(content)
    assert digest_samples([file]) == before
    file.write_bytes(b"")
    assert digest_samples([file]) != digest_samples([])
