"""A folder that mirrors a run at an address: small files whole, large folders when needed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from train.buckets.mirror import (
    Mirror,
    bring,
    bring_for_all,
    forget,
    keep,
    mirror_of,
    push,
    shown,
)
from train.buckets.store import Store
from train.checkpoint_folder import CheckpointFolder
from train.errors import UserError
from train.manifest import DamagedError, check_folder, write_manifest


@pytest.fixture
def mirror(gs: Any, tmp_path: Path) -> Iterator[Mirror]:
    mirror = Mirror(tmp_path / "top", gs.address)
    mirror.folder.mkdir()
    keep(mirror)
    yield mirror
    forget(mirror)


def _again(mirror: Mirror, tmp_path: Path) -> Mirror:
    """Another machine's."""
    other = Mirror(tmp_path / "other/top", mirror.address)
    other.pull()
    return other


def _folder(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)
    write_manifest(folder, {"step": 2})
    return folder


def _names(mirror: Mirror) -> set[str]:
    return set(Store(mirror.address).objects())


def test_a_save_that_was_cut_off_in_the_bucket_is_no_checkpoint(
    mirror: Mirror, tmp_path: Path
) -> None:
    mirror.put(_folder(mirror.folder / "checkpoints/2", data="x"))
    store = Store(mirror.address)
    store.write("checkpoints/4/rest/data", b"y")
    store.write("profile/trace", b"z")
    other = _again(mirror, tmp_path)
    assert CheckpointFolder(other.folder / "checkpoints").steps == [2]
    store.remove(["checkpoints/2/manifest.json"])
    alone = Mirror(tmp_path / "third/top", mirror.address)
    alone.pull()
    assert CheckpointFolder(alone.folder / "checkpoints").steps == []


def test_only_paths_in_it_are_a_mirrors(mirror: Mirror, tmp_path: Path) -> None:
    assert mirror_of(mirror.folder / "a/b") is mirror
    assert mirror_of(tmp_path) is None
    assert shown(mirror.folder / "a") == f"{mirror.address}/a"
    assert shown(tmp_path) == str(tmp_path)
    push(tmp_path)
    bring(tmp_path)
    bring_for_all(tmp_path)


def test_small_files_are_put_when_they_changed(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mirror.folder / "metrics.jsonl").write_text("1\n")
    (mirror.folder / ".lock").touch()
    (mirror.folder / ".config.yaml.0a1b2c3d.new").touch()
    push(mirror.folder)
    assert _names(mirror) == {"metrics.jsonl"}
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", pytest.fail)
        real = Store.upload
        patch.setattr(
            Store, "upload", lambda self, files: real(self, {}) if not files else pytest.fail(files)
        )
        push(mirror.folder)
    (mirror.folder / "metrics.jsonl").write_text("1\n2\n")
    push(mirror.folder)
    other = _again(mirror, tmp_path)
    assert (other.folder / "metrics.jsonl").read_text() == "1\n2\n"


def test_a_folder_with_a_manifest_is_put_whole_and_brought_when_needed(
    mirror: Mirror, tmp_path: Path
) -> None:
    Store(mirror.address).write("export/stale", b"")
    _folder(mirror.folder / "export", a="1", b="2")
    push(mirror.folder)
    assert _names(mirror) == {"export/a", "export/b", "export/manifest.json"}
    other = _again(mirror, tmp_path)
    keep(other)
    assert [path.name for path in (other.folder / "export").iterdir()] == ["manifest.json"]
    bring(other.folder / "export")
    assert check_folder(other.folder / "export").facts == {"step": 2}
    Store(mirror.address).write("export/note", b"somebody else's")
    bring(other.folder / "export")
    assert not (other.folder / "export/note").exists()
    bring(other.folder / "export", whole=True)
    assert (other.folder / "export/note").exists()
    forget(other)


def test_a_checkpoint_counts_with_its_manifest_and_after_its_records(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = Store.upload
    monkeypatch.setattr(
        Store, "upload", lambda store, files: (order.extend(files), real(store, files))[1]
    )
    folder = CheckpointFolder(mirror.folder / "checkpoints")
    (mirror.folder / "metrics.jsonl").write_text("1\n")
    folder.clear()
    folder.saving(2).mkdir()
    (folder.saving(2) / "data").write_text("2")
    folder.commit(2, {})
    assert order == ["metrics.jsonl", "checkpoints/2/data", "checkpoints/2/manifest.json"]
    assert not (folder.step(2) / "data").exists(), "it need not be here too"
    assert folder.fault(2) is None
    Store(mirror.address).write("checkpoints/4/data", b"what a killed run left")
    folder.clear()
    assert "checkpoints/4/data" not in _names(mirror)
    assert CheckpointFolder(_again(mirror, tmp_path).folder / "checkpoints").steps == [2]


def test_checkpoints_are_pruned_and_set_aside_there_too(mirror: Mirror) -> None:
    folder = CheckpointFolder(mirror.folder / "checkpoints")
    folder.clear()
    for step in (2, 4, 6):
        folder.saving(step).mkdir()
        (folder.saving(step) / "data").write_text(str(step))
        folder.commit(step, {})
    folder.prune(2, None)
    assert {n.split("/")[1] for n in _names(mirror)} == {"4", "6"}
    Store(mirror.address).write("checkpoints/6/data", b"7")
    fault = folder.fault(6)
    assert fault == "data has other content"
    folder.set_aside({6: fault}, 4, rename=True)
    assert {n.split("/")[1] for n in _names(mirror)} == {"4", "6.damaged"}
    assert folder.steps == [4]


def test_a_save_that_the_bucket_refuses_leaves_those_before(mirror: Mirror, gs: Any) -> None:
    folder = CheckpointFolder(mirror.folder / "checkpoints")
    folder.clear()
    for step in (2, 4):
        folder.saving(step).mkdir()
        (folder.saving(step) / "data").write_text(str(step))
        if step == 4:
            gs.fail(status=403, after=3)
            with pytest.raises(UserError, match=rf"{gs.address}/checkpoints/4.*cannot be"):
                folder.commit(step, {})
            folder.discard(step)
            gs.mend()
        else:
            folder.commit(step, {})
    assert "checkpoints/4/manifest.json" not in _names(mirror)
    assert folder.steps == [2]
    assert folder.fault(2) is None


def test_whoever_lost_the_lease_puts_nothing(mirror: Mirror) -> None:
    def lost() -> None:
        raise UserError("lost")

    mirror.check = lost
    with pytest.raises(UserError, match="lost"):
        mirror.put(_folder(mirror.folder / "export", a="1"))
    assert not _names(mirror)


def test_a_checkpoint_that_was_removed_meanwhile_is_damaged(mirror: Mirror) -> None:
    folder = _folder(mirror.folder / "export", a="1")
    mirror.put(folder)
    mirror.thin(folder)
    mirror.remove(folder)
    bring(folder)
    with pytest.raises(DamagedError):
        check_folder(folder)
