"""Paths as users give them: with a home folder, or of the program's own configs."""

from pathlib import Path

import pytest

from train.errors import UserError
from train.files import expand, shipped


def test_a_home_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand("~/.cache") == Path("/home/me/.cache")
    with pytest.raises(UserError, match=r"^~nobody-here/x: this user has no such home folder"):
        expand("~nobody-here/x")

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)  # As in a container that runs as any number.
    with pytest.raises(UserError, match=r"no such home folder; name another path, or set HOME"):
        expand("~/.cache")


def test_a_config_that_is_not_here_is_the_programs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quickstart = Path("configs/quickstart.yaml")
    assert shipped(quickstart).read_text().startswith("# Fine-tunes SmolLM2")
    assert shipped(Path("configs/models/llama-2-7b")).is_dir()
    for path in ("configs/none.yaml", "quickstart.yaml", "/configs/quickstart.yaml"):
        assert shipped(Path(path)) == Path(path)
    quickstart.parent.mkdir()
    quickstart.write_text("mine")
    assert shipped(quickstart).read_text() == "mine"
