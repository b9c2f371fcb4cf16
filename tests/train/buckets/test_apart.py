"""Checkpoints that orbax writes into a bucket: vouched for, verified, restored and pruned."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from train.buckets import apart
from train.buckets.apart import check_for_all, place
from train.buckets.mirror import Mirror, forget, keep
from train.buckets.store import Store
from train.checkpoint import Checkpoints
from train.data.loader import Loader
from train.errors import UserError
from train.manifest import DamagedError, read_manifest
from train.step import TrainState


class Position:
    """What a loader reads from: a position."""

    def __init__(self, number: int) -> None:
        self.number = number

    def get_state(self) -> dict[str, Any]:
        return {"number": self.number}

    def set_state(self, state: dict[str, Any]) -> None:
        self.number = state["number"]


def _state(step: int) -> TrainState:
    values = np.arange(8, dtype=np.float32) + step
    return jax.device_put(TrainState(np.int32(step), {"w": values}, {"m": -values}))


@pytest.fixture(autouse=True)
def _forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """No mirror outlives its test."""
    monkeypatch.setattr("train.buckets.mirror._mirrors", {})


def _mirror(address: str, folder: Path, *, shared: bool = False) -> Mirror:
    """What another start of the run has, on a machine of its own."""
    mirror = Mirror(folder / "run", address)
    mirror.folder.mkdir(parents=True)
    mirror.apart = not shared
    mirror.pull()
    keep(mirror)
    return mirror


@pytest.fixture
def saved(gs: Any, tmp_path: Path) -> str:
    """The address of a run that saved steps 2, 4 and 6, and keeps two of them."""
    mirror = _mirror(gs.address, tmp_path / "first")
    folder = mirror.folder / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(_state(step), Loader(Position(step)))  # type: ignore[arg-type]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"4/manifest.json", "6/manifest.json"}
    forget(mirror)
    return str(gs.address)


def _restored(mirror: Mirror) -> tuple[int, int]:
    """The step of what is restored, which is compared with what was saved, and the position."""
    position = Position(0)
    with Checkpoints(mirror.folder / "checkpoints", keep=2) as checkpoints:
        state = checkpoints.restore(_state(0), Loader(position))  # type: ignore[arg-type]
    step = int(state.step)
    for found, right in zip(jax.tree.leaves(state), jax.tree.leaves(_state(step)), strict=True):
        np.testing.assert_array_equal(found, right)
    return step, position.number


@pytest.mark.parametrize("shared", [True, False])
def test_a_checkpoint_is_restored_by_processes_that_share_a_folder_or_do_not(
    saved: str, tmp_path: Path, shared: bool
) -> None:
    tops = {name.split("/")[1] for name in Store(saved).objects("checkpoints")}
    assert tops == {"4", "6"}
    assert not [name for name in Store(saved).objects() if "digests-" in name]
    assert _restored(_mirror(saved, tmp_path / "again", shared=shared)) == (6, 6)


def test_what_is_saved_from_a_shared_folder_is_restored_without_one(
    gs: Any, tmp_path: Path
) -> None:
    mirror = _mirror(gs.address, tmp_path / "first", shared=True)
    with Checkpoints(mirror.folder / "checkpoints", keep=2) as checkpoints:
        checkpoints.save(_state(2), Loader(Position(2)))  # type: ignore[arg-type]
    assert _restored(_mirror(gs.address, tmp_path / "again")) == (2, 2)


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(saved)
    name = next(name for name in store.objects("checkpoints/6/params") if "/d/" in name)
    content = store.read(name)
    assert content
    store.write(name, bytes([content[0] ^ 1]) + content[1:])
    mirror = _mirror(saved, tmp_path / "again")
    with pytest.raises(DamagedError, match="has other content"):
        check_for_all(mirror.folder / "checkpoints/6", "full")
    check_for_all(mirror.folder / "checkpoints/6", "size")
    assert _restored(mirror) == (4, 4)
    line = capsys.readouterr().err
    assert re.search(r"gs://\S+/checkpoints/6 is damaged .* set aside as 6.damaged", line)
    assert {n.split("/")[1] for n in store.objects("checkpoints")} == {"4", "6.damaged"}


def test_an_object_that_is_gone_or_cut_is_named(saved: str, tmp_path: Path) -> None:
    store, mirror = Store(saved), _mirror(saved, tmp_path / "again")
    folder = mirror.folder / "checkpoints/6"
    assert place(folder) == f"{saved}/checkpoints/6"
    store.write("checkpoints/6/rest/_METADATA", b"{}")
    with pytest.raises(DamagedError, match="rest/_METADATA has 2 of"):
        check_for_all(folder, "size")
    store.remove(["checkpoints/6/rest/_METADATA"])
    with pytest.raises(DamagedError, match="rest/_METADATA is missing"):
        check_for_all(folder, "size")


def test_a_save_that_was_cut_off_is_removed(saved: str, tmp_path: Path) -> None:
    store = Store(saved)
    store.remove(["checkpoints/6/manifest.json"])
    store.write("checkpoints/6/digests-0", b"{}")
    assert _restored(_mirror(saved, tmp_path / "again")) == (4, 4)
    assert {name.split("/")[1] for name in store.objects("checkpoints")} == {"4"}


def test_what_a_faster_process_has_read_back_is_no_part_of_a_checkpoint(
    saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, barrier = _mirror(saved, tmp_path / "again"), apart.wait_for_all

    def slow(what: str) -> None:
        barrier(what)
        if what.startswith("writing"):  # It sorts before what orbax has written.
            mirror.store.write("checkpoints/8/digests-1", b"{}")

    monkeypatch.setattr(apart, "wait_for_all", slow)
    with Checkpoints(mirror.folder / "checkpoints", keep=2) as checkpoints:
        checkpoints.save(_state(8), Loader(Position(8)))  # type: ignore[arg-type]
    manifest = read_manifest(mirror.folder / "checkpoints/8")
    assert "orbax.checkpoint" in manifest.files
    assert not [name for name in manifest.files if name.startswith("digests")]


def test_what_not_all_processes_have_read_back_is_no_checkpoint(
    saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = _mirror(saved, tmp_path / "again")
    monkeypatch.setattr("train.buckets.apart.process_share", lambda: (0, 2))
    checkpoints = Checkpoints(mirror.folder / "checkpoints", keep=2)
    checkpoints.save(_state(8), Loader(Position(8)))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"checkpoints/8/\S+: is not there as it was written"):
        checkpoints.wait()
    assert {name.split("/")[1] for name in Store(saved).objects("checkpoints")} == {"4", "6"}
