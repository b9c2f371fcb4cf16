"""The secret: from the environment, from a file, or this user's own."""

import stat
from pathlib import Path

import pytest

from train.distributed.secret import VARIABLE, find_secret, is_loopback, is_proof, proof
from train.errors import UserError


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(f"{VARIABLE}_FILE", raising=False)


def test_it_is_what_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "word"
    monkeypatch.setenv(f"{VARIABLE}_FILE", str(file))
    with pytest.raises(UserError, match="word: No such file"):
        find_secret("10.0.0.1")
    file.write_text("\n")
    with pytest.raises(UserError, match="word is empty"):
        find_secret("10.0.0.1")
    file.write_text("abc\n")
    assert find_secret("10.0.0.1") == b"abc"
    monkeypatch.setenv(VARIABLE, "def")
    assert find_secret("10.0.0.1") == b"def"


def test_one_machine_needs_none_and_several_do(tmp_path: Path) -> None:
    secret = find_secret("127.0.0.1")
    assert len(secret) == 64
    assert find_secret("localhost") == secret
    (file,) = tmp_path.rglob("secret")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(UserError, match="several machines need a shared secret: set GMT_TRAIN"):
        find_secret("10.0.0.1")


def test_addresses_of_this_machine_alone() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert not is_loopback("10.0.0.1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("no such host")


def test_a_proof_is_of_its_parts_and_its_secret() -> None:
    given = proof(b"s", "a", "b")
    assert is_proof(given, b"s", "a", "b")
    assert not is_proof(given, b"t", "a", "b")
    assert not is_proof(given, b"s", "a", "c")
    assert not is_proof("é", b"s", "a", "b")
