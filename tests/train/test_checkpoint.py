"""The training state and the loader's position, saved and restored together."""

import asyncio
import json
import shutil
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from train.checkpoint import Checkpoints
from train.errors import UserError
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


def test_the_weights_alone_are_read_without_disturbing_a_save(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c", keep=1) as checkpoints:
        checkpoints.save(_state(5), Counter())
    saving = tmp_path / "c" / "6.orbax-checkpoint-tmp"
    saving.mkdir()
    with Checkpoints(tmp_path / "c") as checkpoints:
        params = checkpoints.restore_params(abstract(_state(0), _shardings()).params)
    np.testing.assert_array_equal(params["w"], _state(5).params["w"])
    assert saving.is_dir()


def test_nothing_to_restore(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there: the run saved nothing yet"):
        Checkpoints(tmp_path / "c")
    with (
        Checkpoints(tmp_path / "c", keep=1) as checkpoints,
        pytest.raises(UserError, match="holds no checkpoint; train first"),
    ):
        checkpoints.restore_params({})


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c", keep=1) as checkpoints:
        checkpoints.save(_state(5), Counter())
    shutil.rmtree(tmp_path / "c" / "5" / "loader")
    with (
        Checkpoints(tmp_path / "c", keep=1) as checkpoints,
        pytest.raises(UserError, match=r"c/5 cannot be restored \(.*remove that folder"),
    ):
        checkpoints.restore(abstract(_state(0), _shardings()), Counter())


def test_an_implicit_transfer_is_not_made_by_saving(tmp_path: Path) -> None:
    state = _state(1)
    with Checkpoints(tmp_path / "c", keep=1) as checkpoints, jax.transfer_guard("disallow"):
        checkpoints.save(state, Counter())
    assert (tmp_path / "c" / "1").is_dir()
