"""Training batches with a position, evaluation batches, and both in two real processes."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from train.config import load_config
from train.data.loader import Loader, RunData, open_data
from train.errors import UserError
from train.hf.tokenizer import load_tokenizer
from train.sharding import make_mesh

Open = Callable[..., RunData]
STREAM = {"streaming": True, "eval_fraction": 0, "shuffle_buffer": 7}


@pytest.fixture
def open_run(write_config: Callable[..., Path], tiny_model: Path) -> Open:
    """Opens the tiny data on two of the devices."""

    def open_run(**data: Any) -> RunData:
        file = write_config(batch={"size": 4, "num_microbatches": 2}, data=data)
        mesh = make_mesh(1, 2, devices=jax.devices()[:2])
        tokenizer = load_tokenizer(tiny_model)
        return open_data(load_config(file), tokenizer, 272, mesh, Console(quiet=True))

    return open_run


def _take(loader: Loader, count: int) -> list[tuple[dict[str, np.ndarray], int]]:
    return [({k: np.asarray(v) for k, v in batch.items()}, n) for batch, n in
            (next(loader) for _ in range(count))]  # fmt: skip


class _Directory:
    """The directory of a checkpoint that orbax is about to make."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def await_creation(self) -> Path:
        return self._path


def _save(loader: Loader, folder: Path) -> None:
    async def save() -> None:
        await (await loader.save(_Directory(folder)))

    asyncio.run(save())


def _load(loader: Loader, folder: Path) -> None:
    async def load() -> None:
        await (await loader.load(folder))

    asyncio.run(load())


@pytest.mark.parametrize(
    "data",
    [{}, {"packing": "bucketed"}, {"packing": "packed"}, STREAM, STREAM | {"packing": "packed"}],
    ids=["none", "bucketed", "packed", "stream", "packed stream"],
)
def test_it_goes_on_from_a_saved_position(
    open_run: Open, tmp_path: Path, data: dict[str, Any]
) -> None:
    with closing(open_run(**data).loader) as loader:
        _take(loader, 2)
        _save(loader, tmp_path)
        whole = _take(loader, 2)
    with closing(open_run(**data).loader) as again:
        _load(again, tmp_path)
        for (batch, num_tokens), (expected, expected_tokens) in zip(
            _take(again, 2), whole, strict=True
        ):
            assert num_tokens == expected_tokens == np.count_nonzero(batch["tokens"])
            assert batch["tokens"].shape[:2] == (2, 2)
            for name in expected:
                np.testing.assert_array_equal(batch[name], expected[name])


@pytest.mark.parametrize("packing", ["none", "packed"])
def test_a_batch_is_described_by_the_records_that_are_in_it(
    open_run: Open, tiny_data: Path, packing: str
) -> None:
    data = open_run(packing=packing)
    lines = tiny_data.read_text().splitlines()
    for step, (batch, _) in enumerate(_take(data.loader, 2)):
        where = data.loader.describe(step)
        assert all(name.startswith(f"{tiny_data}:") for name in where)
        # Tokens are bytes, from 3 on, with three special ones before.
        answers = [json.loads(lines[int(w.rpartition(":")[2]) - 1])["messages"][1] for w in where]
        digits = sum(len(answer["content"]) for answer in answers)
        assert np.count_nonzero(batch["weights"]) == digits + len(where), "and an end each"


def test_more_processes_go_on_with_indexed_data_and_not_with_a_stream(
    open_run: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_run().loader) as loader:
        _take(loader, 3)
        _save(loader, tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(jax, "process_index", lambda: 5)
            _load(loader, tmp_path)
    assert loader.get_state() == {"next_index": 3}
    with closing(open_run(**STREAM).loader) as stream:
        _save(stream, tmp_path)
        file = tmp_path / "process_0.json"
        file.write_text(file.read_text().replace('"num_shards": 1', '"num_shards": 2'))
        with pytest.raises(UserError, match="saved by 2 processes and cannot go on with 1"):
            _load(stream, tmp_path)


def test_all_evaluation_data_comes_once(open_run: Open) -> None:
    data = open_run()
    data.loader.close()
    assert data.steps == 6
    assert list(data.eval_batches) == [""]
    for _ in range(2):
        with data.eval_batches[""]() as batches:
            rows = np.concatenate([np.asarray(batch["tokens"]) for batch in batches])
        lengths = np.count_nonzero(rows, axis=1)
        assert 4 <= np.count_nonzero(lengths) <= 12, "a fifth of forty records"
    assert len(set(data.digests.values())) == 2


def test_a_stream_is_digested_by_its_files_and_counts_what_it_read(open_run: Open) -> None:
    data = open_run(**STREAM)
    with closing(data.loader) as loader:
        _take(loader, 1)
    assert data.eval_batches == {}
    assert list(data.digests) == ["training data"]
    assert data.stream is not None
    assert data.stream.counts["kept"] >= 4


def test_less_data_than_a_batch_is_refused(open_run: Open) -> None:
    with pytest.raises(UserError, match="an epoch has 3 rows, fewer than a batch of 4"):
        open_run(limit=3)


SCRIPT = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
import numpy as np
from contextlib import closing
from jax.experimental.multihost_utils import process_allgather
from pathlib import Path
from rich.console import Console
from train.checkpoint import Checkpoints
from train.config import load_config
from train.data.loader import open_data
from train.distributed.processes import main_process_first
from train.hf.tokenizer import load_tokenizer
from train.sharding import make_mesh, replicated
from train.step import TrainState

config = load_config(Path(sys.argv[3]))
mesh = make_mesh()
tokenizer = load_tokenizer(Path(config.model.path))
folder = Path(config.run) / "checkpoints"


def take(loader, count):
    return [
        {name: process_allgather(x, tiled=True) for name, x in next(loader)[0].items()}
        for _ in range(count)
    ]


def open_loader():
    with main_process_first("data", 300):
        return open_data(config, tokenizer, 272, mesh, Console(quiet=True)).loader


whole_array = jax.device_put(np.zeros(3, np.float32), replicated(mesh))
step = jax.device_put(np.int32(3), replicated(mesh))
state = TrainState(step, {"w": whole_array}, {"m": whole_array})
with closing(open_loader()) as loader, Checkpoints(folder, 1) as checkpoints:
    first = take(loader, 3)
    checkpoints.save(state, loader)
    whole = take(loader, 2)
with closing(open_loader()) as loader, Checkpoints(folder, 1) as checkpoints:
    assert int(checkpoints.restore(state, loader).step) == 3
    again = take(loader, 2)
for batch, expected in zip(again, whole, strict=True):
    for name in expected:
        np.testing.assert_array_equal(batch[name], expected[name])
if jax.process_index() == 0:
    np.savez(sys.argv[4], *(batch["tokens"] for batch in [*first, *whole]))
"""


@pytest.mark.parametrize("data", [{"packing": "packed"}, STREAM], ids=["indexed", "stream"])
def test_two_processes_save_and_go_on_together(
    open_run: Open, write_config: Callable[..., Path], tmp_path: Path, data: dict[str, Any]
) -> None:
    file = write_config(batch={"size": 4, "num_microbatches": 1}, data=data)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, port, str(index), str(file), str(tmp_path / "out.npz")],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    with np.load(tmp_path / "out.npz") as saved:
        together = [saved[name] for name in saved]
    if data is not STREAM:  # The processes of a stream read records of their own.
        with closing(open_run(**data).loader) as loader:
            for (batch, _), tokens in zip(_take(loader, 5), together, strict=True):
                np.testing.assert_array_equal(batch["tokens"].reshape(tokens.shape), tokens)


def test_positions_are_json(open_run: Open) -> None:
    with closing(open_run(**STREAM).loader) as loader:
        _take(loader, 1)
        assert json.loads(json.dumps(loader.get_state())) == loader.get_state()
