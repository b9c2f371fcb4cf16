"""Digests change with the contents and with nothing else."""

from pathlib import Path

from train.data.digest import digest, digest_files


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
