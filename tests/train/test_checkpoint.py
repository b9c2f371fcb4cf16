"""The training state and the loader's position, saved and restored together."""

import asyncio
import json
import re
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from train.buckets.store import BucketError
from train.checkpoint import Checkpoints
from train.errors import UserError
from train.manifest import Verify
from train.sharding import abstract, make_mesh
from train.step import TrainState


class Counter:
    """A loader whose position is a number."""

    def __init__(self, position: int = 0) -> None:
        self.position = position

    async def save(self, directory: Any) -> Awaitable[None]:
        state = json.dumps(self.position)

        async def write() -> None:
            folder = await directory.await_creation()
            await asyncio.to_thread((folder / "state.json").write_text, state)

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        async def read() -> None:
            self.position = json.loads((directory / "state.json").read_text())

        return read()


MESH = make_mesh(1, 2, devices=jax.devices()[:2])


def _shardings() -> TrainState:
    split = NamedSharding(MESH, PartitionSpec("fsdp"))
    whole = NamedSharding(MESH, PartitionSpec())
    return TrainState(whole, {"w": split}, {"m": split})


def _state(step: int) -> TrainState:
    values = np.arange(8, dtype=np.float32) + step
    return jax.device_put(TrainState(np.int32(step), {"w": values}, {"m": -values}), _shardings())


def _assert_equal(a: TrainState, b: TrainState) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


def test_state_and_position_are_restored_together(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert checkpoints.latest_step is None
        loader = Counter()
        for step in (1, 2, 3):
            loader.position = 10 * step
            checkpoints.save(_state(step), loader)
        loader.position = 99  # What comes after a save does not change it.
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert checkpoints.latest_step == 3
        again = Counter()
        restored = checkpoints.restore(abstract(_state(0), _shardings()), again)
    _assert_equal(restored, _state(3))
    assert again.position == 30
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["2", "3"]


def _restore(folder: Path, verify: Verify = "full") -> tuple[TrainState, int]:
    """The state that a resumed run gets, and its loader's position."""
    loader = Counter()
    with Checkpoints(folder, keep=2, verify=verify) as checkpoints:
        return checkpoints.restore(abstract(_state(0), _shardings()), loader), loader.position


@pytest.fixture(scope="session")
def _saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "c"
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (40, 60):
            checkpoints.save(_state(step), Counter(step))
    return folder


@pytest.fixture
def saved(_saved: Path, tmp_path: Path) -> Path:
    """The checkpoints 40 and 60."""
    return Path(shutil.copytree(_saved, tmp_path / "c"))


def _largest(folder: Path) -> Path:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "manifest.json"]
    return max(files, key=lambda file: file.stat().st_size)


def _flip(step: Path) -> None:
    file = _largest(step / "params")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _cut(step: Path) -> None:
    file = _largest(step)
    file.write_bytes(file.read_bytes()[:-1])


def _mix(step: Path) -> None:
    """The weights of one step beside the rest of another."""
    shutil.rmtree(step / "params")
    shutil.copytree(step.parent / "40" / "params", step / "params")


def _copy_of_another(step: Path) -> None:
    shutil.rmtree(step)
    shutil.copytree(step.parent / "40", step)


def _empty(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (_flip, "has other content"),
    "a cut file": (_cut, "bytes"),
    "the weights of another step": (_mix, "params/"),
    "another step": (_copy_of_another, "is a copy of step 40"),
    "an empty folder": (_empty, r"has no manifest\.json"),
    "no manifest": (lambda step: (step / "manifest.json").unlink(), r"has no manifest\.json"),
    "no loader": (lambda step: shutil.rmtree(step / "loader"), "loader/state.json is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    saved: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, fault = DAMAGES[damage]
    change(saved / "60")
    with Checkpoints(saved) as checkpoints:  # An export, which only reads.
        params = checkpoints.restore_params(abstract(_state(0), _shardings()).params)
    np.testing.assert_array_equal(params["w"], _state(40).params["w"])
    line = capsys.readouterr().err
    assert re.search(rf"c/60 is damaged \(.*{fault}.*\) and is left out; step 40 is used", line)
    state, position = _restore(saved)
    _assert_equal(state, _state(40))
    assert position == 40
    line = capsys.readouterr().err
    assert re.search(rf"damaged \(.*{fault}.*\) and is set aside as 60\.damaged; step 40", line)
    with Checkpoints(saved, keep=2) as checkpoints:
        checkpoints.save(_state(50), Counter(50))
        checkpoints.wait()
        assert (saved / "60.damaged").is_dir(), "nothing that is newer is whole yet"
        checkpoints.save(_state(60), Counter(60))
    assert sorted(path.name for path in saved.iterdir()) == ["50", "60"]
    _assert_equal(_restore(saved)[0], _state(60))


def test_where_nothing_is_whole_nothing_is_removed_or_begun(saved: Path) -> None:
    _flip(saved / "60")
    (saved / "40" / "manifest.json").unlink()
    with pytest.raises(
        UserError, match=r"no checkpoint is whole: 60 params/.*; 40 has no manifest\.json; bring"
    ):
        _restore(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["40", "60"]


def test_sizes_alone_can_be_compared(saved: Path) -> None:
    _cut(saved / "60")
    assert _restore(saved, "size")[1] == 40


def test_a_checkpoint_that_does_not_fit_is_left_whole(saved: Path) -> None:
    larger = jax.ShapeDtypeStruct((16,), np.float32, sharding=_shardings().params["w"])
    other = abstract(_state(0), _shardings())._replace(params={"w": larger})
    with (
        Checkpoints(saved, keep=2) as checkpoints,
        pytest.raises(
            UserError,
            match=r"c/60 is whole and of another model.*: params/w is float32\[8\] there and "
            r"float32\[16\] here; go on with",
        ),
    ):
        checkpoints.restore(other, Counter())
    assert sorted(path.name for path in saved.iterdir()) == ["40", "60"]


def test_what_a_killed_run_left_is_removed_by_the_next_that_writes(saved: Path) -> None:
    for name in ("80.saving", "80.saving.orbax-checkpoint-tmp", "20.removing", "thesis.txt"):
        (saved / name).mkdir()
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.steps == [40, 60]
    assert len(list(saved.iterdir())) == 6
    with Checkpoints(saved, keep=2):
        pass
    assert sorted(path.name for path in saved.iterdir()) == ["40", "60", "thesis.txt"]


def test_some_checkpoints_are_kept_for_good(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c", keep=1, keep_every=4) as checkpoints:
        for step in range(2, 12, 2):
            checkpoints.save(_state(step), Counter())
    assert sorted(int(path.name) for path in (tmp_path / "c").iterdir()) == [4, 8, 10]


@pytest.mark.parametrize("part", ["params", "opt_state"])
def test_a_state_that_is_not_finite_is_not_saved(saved: Path, part: str) -> None:
    state = _state(80)
    bad = jax.tree.map(lambda x: x * np.float32(np.inf), getattr(state, part))
    with (
        pytest.raises(
            UserError, match=rf"step 80: (rest/)?{part}/\w not finite.*newest save is step 60"
        ),
        Checkpoints(saved, keep=1) as checkpoints,
    ):
        checkpoints.save(state._replace(**{part: bad}), Counter())
    assert sorted(path.name for path in saved.iterdir()) == ["40", "60"]


def _full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device", "/runs/x/0")


def test_a_save_that_fails_is_reported_and_tried_again(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Checkpoints(saved, keep=1) as checkpoints:
        for name in ("train.manifest.write_manifest", "train.checkpoint._start_saving"):
            with monkeypatch.context() as patch:
                patch.setattr(name, _full)
                checkpoints.save(_state(80), Counter(80))
                checkpoints.wait()
            line = capsys.readouterr().err
            assert "cannot be saved ([Errno 28] No space left on device: '/runs/x/0')" in line
            assert "step 60 is whole; training goes on" in line
            assert not checkpoints.poll()
            assert sorted(path.name for path in saved.iterdir()) == ["40", "60"]
        checkpoints.save(_state(81), Counter(81))
    assert [path.name for path in saved.iterdir()] == ["81"]
    monkeypatch.setattr("train.manifest.write_manifest", _full)
    with Checkpoints(saved, keep=1) as checkpoints:
        for step in (82, 84, 86):
            checkpoints.save(_state(step), Counter())
        with pytest.raises(UserError, match=r"step 81 is whole; make room or mend the disk"):
            checkpoints.wait()
    assert [path.name for path in saved.iterdir()] == ["81"]


def test_a_save_that_takes_hours_is_whole(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, later = time.time, 0

    class Slow(Counter):
        async def save(self, directory: Any) -> Awaitable[None]:
            nonlocal later
            later = 3600
            return await super().save(directory)

    monkeypatch.setattr("time.time", lambda: clock() + later)
    with Checkpoints(saved, keep=1) as checkpoints:
        checkpoints.save(_state(80), Slow(80))
    assert [path.name for path in saved.iterdir()] == ["80"]


def test_a_bucket_that_fails_ends_no_run(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut_off(*_: object) -> None:
        raise BucketError("gs://bucket/x: cannot be written (no answer); see the network")

    with Checkpoints(saved, keep=1) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr("train.manifest.write_manifest", cut_off)
            checkpoints.save(_state(80), Counter(80))
            assert checkpoints.wait(), "it is to be tried again"
        assert "(gs://bucket/x: cannot be written (no answer); see" in capsys.readouterr().err
        checkpoints.save(_state(80), Counter(80))
    assert [path.name for path in saved.iterdir()] == ["80"]


def test_nothing_to_restore(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there: the run saved nothing yet"):
        Checkpoints(tmp_path / "c")
    with (
        Checkpoints(tmp_path / "c", keep=1) as checkpoints,
        pytest.raises(UserError, match="holds no checkpoint; train first"),
    ):
        checkpoints.restore_params({})


def test_an_implicit_transfer_is_not_made_by_saving(tmp_path: Path) -> None:
    state = _state(1)
    with Checkpoints(tmp_path / "c", keep=1) as checkpoints, jax.transfer_guard("disallow"):
        checkpoints.save(state, Counter())
    assert (tmp_path / "c" / "1").is_dir()
