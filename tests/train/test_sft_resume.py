"""Whole runs of a tiny model that are stopped or killed, and go on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from train.config import load_config
from train.errors import UserError
from train.model import ModelConfig
from train.restore import export_run
from train.run import Run, read_records
from train.sft import sft

pytestmark = pytest.mark.usefixtures("two_devices")

Write = Callable[..., Path]


def _train(file: Path, *overrides: str, resume: bool = False) -> Run:
    config = load_config(file, overrides)
    sft(config, resume=resume, console=Console(quiet=True))
    return Run(Path(config.run))


def _losses(run: Run, key: str = "loss") -> list[float]:
    return [r[key] for r in read_records(run.metrics_file) if key in r]


def _weights(run: Run, tmp_path: Path) -> dict[str, np.ndarray]:
    out = export_run(run.folder, tmp_path / f"{run.folder.name}-float32", "float32")
    return load_file(out / "model.safetensors")


def _assert_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name].view(np.uint32), b[name].view(np.uint32), name)


def test_a_stopped_run_ends_with_the_same_bits(write_config: Write, tmp_path: Path) -> None:
    lasting = {"mask": {"kind": "every_few", "every": 4, "report": True}}
    file = write_config(batch={"size": 16, "num_microbatches": 2}, optimizer=lasting)
    whole = _train(file)

    def stop(step: int) -> Callable[[int], float]:
        """A schedule of no meaning that raises SIGTERM when the loop asks for a step's rate."""

        def rate(done: int) -> float:
            if done == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return 0.0

        return rate

    override = f"run={whole.folder}-stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.sft.make_schedule", lambda *_: stop(2))
        stopped = _train(file, override)
    assert len(_losses(stopped)) == 3  # Asked while update 2 was logged: one more, and saved.
    assert (stopped.checkpoints / "3").is_dir()
    _train(file, override, resume=True)
    assert _losses(stopped) == _losses(whole)
    assert _losses(whole, "mask/overlap")[:4] == [0, 1, 1, 1]
    assert _losses(stopped, "mask/ever_kept") == _losses(whole, "mask/ever_kept")
    assert _losses(stopped, "eval_loss") == _losses(whole, "eval_loss")
    _assert_same_bits(_weights(stopped, tmp_path), _weights(whole, tmp_path))


@pytest.mark.slow
@pytest.mark.usefixtures("all_devices")  # Its process has all of them.
def test_a_killed_run_ends_with_the_same_bits(write_config: Write, tmp_path: Path) -> None:
    file = write_config(steps=60, evaluation={"every": 60}, checkpoint={"every": 5, "keep": 2})
    whole = _train(file)
    killed = Run(Path(f"{whole.folder}-killed"))
    command = [sys.executable, "-m", "train", "sft", "--config", str(file), f"run={killed.folder}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    for _ in range(3000):
        if len(list(read_records(killed.metrics_file))) >= 20 or process.poll() is not None:
            break
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was to be killed on the way"
    _train(file, f"run={killed.folder}", resume=True)
    assert _losses(killed) == _losses(whole)
    _assert_same_bits(_weights(killed, tmp_path), _weights(whole, tmp_path))


@pytest.mark.parametrize(
    ("num_devices", "mesh"),
    [
        (2, "{data: 1, fsdp: 2, context: 2, tensor: 2}"),
        pytest.param(8, "{data: 2, fsdp: 2, tensor: 2}", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_on_another_mesh(
    write_config: Write,
    all_devices: list[jax.Device],
    monkeypatch: pytest.MonkeyPatch,
    num_devices: int,
    mesh: str,
) -> None:
    file = write_config()
    with monkeypatch.context() as patch:
        patch.setattr(jax, "devices", lambda: all_devices[:num_devices])
        first = _train(file, f"mesh.fsdp={num_devices}")
    before = _losses(first)
    (first.checkpoints / "6").rename(first.folder / "set-aside")
    _train(file, f"mesh={mesh}", resume=True)
    np.testing.assert_allclose(_losses(first), before, rtol=2e-4)


def test_a_run_that_saved_nothing_begins_again_with_clean_records(write_config: Write) -> None:
    file = write_config(checkpoint={"every": 6})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.loop._to_record", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            _train(file)
    run = _train(file, resume=True)
    steps = [r["step"] for r in read_records(run.metrics_file) if "data" not in r]
    assert steps == [0, 1, 2, 3, 3, 4, 5, 6, 6]


def test_a_finished_run_is_not_begun_again(write_config: Write, tmp_path: Path) -> None:
    file = write_config(export_dtype="float32")
    run = _train(file)
    before = run.metrics_file.read_text()
    whole = load_file(run.export / "model.safetensors")
    (run.checkpoints / "6").rename(tmp_path / "6")
    export_run(run.folder, None, "float32")  # Of step 4, while the run is stopped.
    (tmp_path / "6").rename(run.checkpoints / "6")
    _train(file, resume=True)
    assert run.metrics_file.read_text() == before
    _assert_same_bits(load_file(run.export / "model.safetensors"), whole)
    _train(file, "export_dtype=bfloat16", resume=True)
    assert load_file(run.export / "model.safetensors")["model.norm.weight"].dtype == "bfloat16"


@pytest.mark.slow
def test_a_damaged_run_goes_on_from_the_checkpoint_before(
    write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_config()
    run = _train(file)
    losses, before = _losses(run), _weights(run, tmp_path)
    largest = max((run.checkpoints / "6").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    _train(file, resume=True)
    assert "step 4 is used" in capsys.readouterr().err
    assert _losses(run) == losses
    again = export_run(run.folder, tmp_path / "again", "float32")
    _assert_same_bits(load_file(again / "model.safetensors"), before)


@pytest.mark.slow
def test_weights_that_an_update_made_infinite_are_never_saved(write_config: Write) -> None:
    file = write_config(checkpoint={"every": 5, "keep": 1}, export_dtype="float32")

    def rate(done: jax.Array) -> jax.Array:
        return jnp.where(done < 5, jnp.float32(0), jnp.float32(jnp.inf))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.optimizer.make_schedule", lambda *_: rate)
        with pytest.raises(UserError, match=r"step 6: .* not finite .* newest save is step 5"):
            _train(file)
    run = Run(Path(load_config(file).run))
    assert [path.name for path in run.checkpoints.iterdir()] == ["5"]
    assert not run.export.exists()


def test_a_run_is_not_written_over(
    write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_config()
    run = _train(file)
    before = sorted(run.folder.rglob("*"))
    with pytest.raises(UserError, match="already holds a run; continue it with --resume"):
        _train(file)
    with pytest.raises(UserError, match=r"started with another optimizer\.mask\.mask_ratio"):
        _train(file, "optimizer.mask.mask_ratio=0.5", resume=True)
    assert sorted(run.folder.rglob("*")) == before
    monkeypatch.setattr(ModelConfig, "describe", lambda self: {"config.json rope": "other"})
    with pytest.raises(UserError, match=r"with other contents: config\.json rope changed"):
        _train(file, "export_dtype=float32", resume=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a run"):
        _train(file, f"run={other}")


@pytest.mark.parametrize("packing", ["none", pytest.param("packed", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "batch",
    [
        {"size": 8},
        pytest.param({"size": 16, "num_microbatches": 2}, marks=pytest.mark.slow),
    ],
    ids=["whole", "microbatches"],
)
def test_a_stopped_stream_ends_with_the_same_bits(
    write_config: Write, tiny_data: Path, tmp_path: Path, packing: str, batch: dict[str, int]
) -> None:
    stream = {"streaming": True, "eval_fraction": 0, "shuffle_buffer": 7, "packing": packing}
    file = write_config(data={"train": [str(tiny_data)], **stream}, batch=batch)
    whole = _train(file)
    override = f"run={whole.folder}-stopped"

    def rate(done: int) -> float:
        if done == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.sft.make_schedule", lambda *_: rate)
        stopped = _train(file, override)
    assert len(_losses(stopped)) == 3
    _train(file, override, resume=True)
    assert _losses(stopped) == _losses(whole)
    _assert_same_bits(_weights(stopped, tmp_path), _weights(whole, tmp_path))


@pytest.mark.parametrize("packing", ["packed", pytest.param("bucketed", marks=pytest.mark.slow)])
def test_layouts_train_and_go_on_to_the_same_bits(
    write_config: Write, tmp_path: Path, packing: str
) -> None:
    file = write_config()
    whole = _train(file, f"data.packing={packing}")
    losses = _losses(whole)
    assert losses[-1] < losses[0]
    before = _weights(whole, tmp_path)
    (whole.checkpoints / "6").rename(whole.folder / "set-aside")
    _train(file, f"data.packing={packing}", resume=True)
    assert _losses(whole) == losses
    again = export_run(whole.folder, tmp_path / "again", "float32")
    _assert_same_bits(load_file(again / "model.safetensors"), before)


@pytest.mark.slow
def test_a_mask_of_a_file_lasts_through_a_stop_and_in_the_export(
    write_config: Write, tiny_model: Path, tmp_path: Path
) -> None:
    base = load_file(tiny_model / "model.safetensors")
    rng = np.random.default_rng(0)
    mask = {name: rng.random(weight.shape) > 0.6 for name, weight in base.items()}
    save_file(mask, tmp_path / "mask.safetensors")
    section = {"kind": "fixed_mask", "file": str(tmp_path / "mask.safetensors"), "report": True}
    file = write_config(optimizer={"mask": section, "weight_decay": 0.1})
    whole = _train(file)

    def rate(done: int) -> float:
        if done == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return 0.0

    override = f"run={whole.folder}-stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.sft.make_schedule", lambda *_: rate)
        _train(file, override)
    (tmp_path / "mask.safetensors").rename(tmp_path / "moved.safetensors")
    with pytest.raises(UserError, match=r"mask\.safetensors"):
        _train(file, override, resume=True)
    (tmp_path / "moved.safetensors").rename(tmp_path / "mask.safetensors")
    stopped = _train(file, override, resume=True)
    weights = _weights(stopped, tmp_path)
    _assert_same_bits(weights, _weights(whole, tmp_path))
    for name, weight in weights.items():
        moved = weight.view(np.uint32) != base[name].view(np.uint32)
        np.testing.assert_array_equal(moved & ~mask[name], np.zeros_like(moved), name)
    assert _losses(whole)[-1] < _losses(whole)[0]
    for record in (r for r in read_records(whole.metrics_file) if "loss" in r):
        assert 0 < record["kept_grad_norm"] < record["grad_norm"]
