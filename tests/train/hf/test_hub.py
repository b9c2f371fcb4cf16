from pathlib import Path
from typing import Any

import pytest

from train.errors import UserError
from train.hf import hub as source
from train.hf.hub import resolve_model


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        resolve_model(str(tmp_path))


def test_what_is_neither_folder_nor_hub_name_is_refused() -> None:
    with pytest.raises(UserError, match="no such folder, and not a hub name"):
        resolve_model("./runs/a/b/c")


def test_offline_says_so() -> None:
    with pytest.raises(UserError, match=r"nobody/nothing .*the hub cannot be reached") as caught:
        resolve_model("nobody/nothing", "v1")
    assert "\n" not in str(caught.value)


def _hub_error(name: str) -> Exception:
    # Made without their HTTP response, which only the hub could give.
    kind: Any = getattr(source, name)
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (_hub_error("GatedRepoError"), "accept its terms"),
        (_hub_error("RepositoryNotFoundError"), "no such model on the hub"),
        (_hub_error("RevisionNotFoundError"), "no such revision"),
        (RuntimeError("timed out\nat length"), r"cannot be fetched \(RuntimeError timed out\)"),
    ],
)
def test_failures_of_the_hub_are_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(source, "snapshot_download", fail)
    with pytest.raises(UserError, match=message) as caught:
        resolve_model("owner/model")
    assert "\n" not in str(caught.value)


def test_pickles_are_never_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fetch(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(source, "snapshot_download", fetch)
    assert resolve_model("owner/model", "abc") == tmp_path
    assert (asked["name"], asked["revision"]) == ("owner/model", "abc")
    assert not [p for p in asked["allow_patterns"] if p.endswith(("bin", "pt", "pth", "*"))]
