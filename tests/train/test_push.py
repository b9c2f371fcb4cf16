"""An export is uploaded as one commit, privately, with a card of what is known now."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

from train.__main__ import main
from train.config import load_config
from train.errors import UserError
from train.hf.evaluations import add_evaluation
from train.manifest import write_manifest
from train.push import push_run
from train.run import Run


class Hub:
    """Stands in for the hub's API."""

    def __init__(self) -> None:
        self.private: bool | None = None
        self.files: dict[str, bytes] = {}
        self.message = ""

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        if self.private is None:
            self.private = private

    def model_info(self, name: str) -> Any:
        return SimpleNamespace(private=self.private)

    def create_commit(self, name: str, operations: list[Any], commit_message: str) -> Any:
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()
        self.message = commit_message
        return SimpleNamespace(commit_url=f"https://hub/{name}/commit/1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr("train.push.HfApi", lambda: hub)
    return hub


@pytest.fixture
def run(write_config: Callable[..., Path]) -> Run:
    config = load_config(write_config())
    run = Run(Path(config.run))
    run.start(config)
    run.export.mkdir()
    for name in ("model.safetensors", "config.json", "README.md"):
        (run.export / name).write_text(f"the export's {name}")
    write_manifest(run.export, {"step": 6})
    return run


def test_the_export_is_uploaded_privately_with_a_new_card(
    run: Run, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {"results": {"sums": {"acc,none": 0.5}}, "n-shot": {"sums": 0}}
    add_evaluation(run.folder, 6, results)
    assert main(["push", str(run.folder), "me/tuned"]) == 0
    assert capsys.readouterr().out == "https://hub/me/tuned/commit/1\n"
    assert hub.private is True
    assert hub.message == "Weights after 6 updates"
    assert hub.files.keys() == {"model.safetensors", "config.json", "README.md"}
    assert hub.files["config.json"] == b"the export's config.json"
    assert b"model-index:\n- name: tuned" in hub.files["README.md"]
    assert (run.export / "README.md").read_text() == "the export's README.md"


def test_it_is_public_only_if_asked_for(run: Run, hub: Hub) -> None:
    push_run(run.folder, "me/tuned", public=True, message="mine")
    assert hub.private is False
    assert hub.message == "mine"
    hub.files.clear()
    with pytest.raises(UserError, match="me/tuned exists and is public; add --public"):
        push_run(run.folder, "me/tuned")
    assert hub.files == {}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (HFValidationError("no"), "me/tuned: is no name of the hub; write OWNER/NAME"),
        (OfflineModeIsEnabled("offline"), r"cannot be uploaded \(offline\); hf auth login"),
        (ConnectionError("no route"), r"cannot be uploaded \(no route\)"),
    ],
)
def test_a_refusal_of_the_hub_is_one_line(
    error: Exception, message: str, run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(UserError, match=message):
        push_run(run.folder, "me/tuned")


def test_a_damaged_export_is_not_uploaded(run: Run, hub: Hub) -> None:
    (run.export / "config.json").write_text("changed")
    with pytest.raises(UserError, match=r"export: config.json .*; write it by gmt-train export"):
        push_run(run.folder, "me/tuned")
    assert hub.private is None
