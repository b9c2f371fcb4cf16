"""Whole runs of a tiny model: learning, meshes, stopping and going on, export."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from rich.console import Console
from safetensors.numpy import load_file

from train.config import load_config
from train.errors import UserError
from train.generate import Sampling
from train.restore import complete_prompts, export_run
from train.run import Run, read_records
from train.sft import sft

Write = Callable[..., Path]

# Whole runs share their programs where a test is not about them: two devices, six updates, eight
# rows. Every other shape, mask, mesh or number of updates costs a compilation.


@pytest.fixture
def all_devices() -> list[jax.Device]:
    """The eight devices, for tests of meshes; other tests have two."""
    return jax.devices()


@pytest.fixture(autouse=True)
def _two_devices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "all_devices" not in request.fixturenames:
        two = jax.devices()[:2]
        monkeypatch.setattr(jax, "devices", lambda: two)


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


@pytest.mark.parametrize("steps", [6, pytest.param(12, marks=pytest.mark.slow)])
def test_it_learns_and_records(write_config: Write, steps: int) -> None:
    evaluation = {"every": steps // 2, "prompts": ["3+9="]}
    run = _train(write_config(steps=steps, evaluation=evaluation))
    eval_losses = _losses(run, "eval_loss")
    assert len(eval_losses) == 3
    assert eval_losses[-1] < 0.9 * eval_losses[0]
    assert _losses(run, "masked_fraction") == pytest.approx([0.2] * steps, abs=0.01)
    assert all(0 <= share < 1 for share in _losses(run, "data_wait"))
    assert len(_losses(run, "data_wait")) == steps
    assert run.config().steps == steps
    assert [r["step"] for r in read_records(run.samples_file)] == [0, steps]


def test_plain_fine_tuning_masks_nothing(write_config: Write) -> None:
    run = _train(write_config(steps=2), "optimizer.mask.kind=none")
    assert _losses(run, "masked_fraction") == [0.0, 0.0]


FISHER = "{kind: fisher, mask_ratio: 0.5, warmup: 1, report: true}"


def test_it_trains_under_a_mask_that_lasts(write_config: Write) -> None:
    run = _train(write_config(steps=2), f"optimizer.mask={FISHER}")
    assert _losses(run, "masked_fraction") == pytest.approx([1.0, 0.5], abs=0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("all_devices")
@pytest.mark.parametrize(
    ("mask", "masked"),
    [
        ("{kind: random_mask, mask_ratio: 0.5, every: 2}", [0.5, 0.5]),
        (FISHER, [1.0, 0.5]),
        ("{kind: lisa, every: 1, num_layers: 1}", [0.33, 0.33]),
    ],
    ids=["random_mask", "fisher", "lisa"],
)
def test_it_trains_under_every_kind_of_mask_on_a_mesh(
    write_config: Write, mask: str, masked: list[float]
) -> None:
    run = _train(write_config(steps=2), f"optimizer.mask={mask}", "mesh={fsdp: 4, tensor: 2}")
    assert _losses(run, "masked_fraction") == pytest.approx(masked, abs=0.02)


@pytest.mark.parametrize(
    ("mesh", "compute_dtype"),
    [
        pytest.param((8, 1, 1, 1), "float32", marks=pytest.mark.slow),
        pytest.param((1, 8, 1, 1), "float32", marks=pytest.mark.slow),
        pytest.param((2, 2, 2, 1), "float32", marks=pytest.mark.slow),
        ((1, 2, 2, 2), "float32"),
        pytest.param((2, 2, 2, 1), "bfloat16", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_mesh_gives_the_same_losses(
    write_config: Write,
    all_devices: list[jax.Device],
    mesh: tuple[int, ...],
    compute_dtype: str,
) -> None:
    data, fsdp, tensor, context = mesh
    dtype = f"model.compute_dtype={compute_dtype}"
    spread = _train(
        write_config(steps=3),
        dtype,
        f"mesh={{data: {data}, fsdp: {fsdp}, context: {context}, tensor: {tensor}}}",
    )
    again = write_config(steps=3, run=str(spread.folder) + "-alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: all_devices[:1])
        alone = _train(again, dtype)
    tolerance = 2e-4 if compute_dtype == "float32" else 2e-2
    np.testing.assert_allclose(_losses(spread), _losses(alone), rtol=tolerance)
    np.testing.assert_allclose(
        _losses(spread, "eval_loss"), _losses(alone, "eval_loss"), rtol=tolerance
    )


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
    assert [r["step"] for r in read_records(run.metrics_file)] == [0, 1, 2, 3, 3, 4, 5, 6, 6]


def test_reading_a_live_run_leaves_its_save_alone(write_config: Write, tmp_path: Path) -> None:
    run = _train(write_config())
    saving = run.checkpoints / "8.orbax-checkpoint-tmp"
    saving.mkdir()
    export_run(run.folder, tmp_path / "out", "float32")
    assert saving.is_dir()


def test_a_finished_run_is_not_begun_again(write_config: Write) -> None:
    file = write_config()
    before = _train(file).metrics_file.read_text()
    run = _train(file, resume=True)
    assert run.metrics_file.read_text() == before


def test_a_run_is_not_written_over(write_config: Write, tmp_path: Path) -> None:
    file = write_config()
    run = _train(file)
    before = sorted(run.folder.rglob("*"))
    with pytest.raises(UserError, match="already holds a run; continue it with --resume"):
        _train(file)
    with pytest.raises(UserError, match=r"started with another optimizer\.mask\.mask_ratio"):
        _train(file, "optimizer.mask.mask_ratio=0.5", resume=True)
    assert sorted(run.folder.rglob("*")) == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a run"):
        _train(file, f"run={other}")


def test_an_export_generates_what_its_run_does(write_config: Write, tmp_path: Path) -> None:
    run = _train(write_config(export_dtype="float32"))
    sampling = Sampling(max_new_tokens=8)
    prompts = ["3+9=", "a much longer question: 12+144="]
    from_run = complete_prompts(str(run.folder), prompts, sampling)
    assert complete_prompts(str(run.export), prompts, sampling) == from_run
    # A prompt's completion does not depend on what stands beside it.
    assert complete_prompts(str(run.folder), prompts[:1], sampling) == from_run[:1]
    warm = Sampling(max_new_tokens=8, temperature=1.5, top_p=0.9, seed=1)
    sampled = complete_prompts(str(run.folder), prompts, warm)
    assert sampled == complete_prompts(str(run.folder), prompts, warm)
    assert sampled != from_run


def test_an_export_loads_in_transformers(write_config: Write) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = _train(write_config(export_dtype="float32"))
    model = AutoModelForCausalLM.from_pretrained(run.export, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(run.export)
    turns = [{"role": "user", "content": "3+9="}]
    ids = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    out = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=2)[
        0, ids.shape[1] :
    ]
    theirs = tokenizer.decode(out, skip_special_tokens=True)
    assert complete_prompts(str(run.export), ["3+9="], Sampling(8)) == [theirs]


def test_the_saved_config_is_whole(write_config: Write) -> None:
    run = _train(write_config())
    saved = yaml.safe_load(run.config_file.read_text())
    assert saved["optimizer"]["b2"] == 0.999
    assert load_config(run.config_file) == run.config()


@pytest.mark.parametrize("packing", ["none", "packed"])
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
