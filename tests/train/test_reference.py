"""The reference: computed once, on the whole mesh, and never against other weights or data."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from train import reference as module
from train.config import load_config
from train.errors import UserError
from train.hf.tokenizer import load_tokenizer
from train.model import load_model_config
from train.program import Program
from train.reference import find_reference
from train.restore import export_run
from train.run import Run
from train.sft import sft
from train.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("two_devices")

Write = Callable[..., Path]


def _turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Forty sums with a right and a wrong answer, of different lengths."""
    file = tmp_path / "pairs.jsonl"
    rows = [
        {
            "prompt": _turn("user", f"{n}+{n * n}="),
            "chosen": _turn("assistant", str(n + n * n) * (1 + n % 3)),
            "rejected": _turn("assistant", str(n + n * n + 7) * (1 + n % 2)),
        }
        for n in range(40)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def write(write_config: Write, pairs: Path, tmp_path: Path) -> Write:
    """Writes the config of a run on pairs, with a cache of its own."""

    def write(**sections: Any) -> Path:
        data = {"train": str(pairs)} | sections.pop("data", {})
        settings = {"steps": 2, "objective": {"kind": "dpo"}, "cache": str(tmp_path / "cache")}
        return write_config(**settings | sections, data=data)

    return write


class StopHereError(Exception):
    """Raised instead of running the loop."""


def _stop(*_: Any, **__: Any) -> Any:
    raise StopHereError


def _train(file: Path, *overrides: str, resume: bool = False) -> Run:
    config = load_config(file, overrides)
    return sft(config, resume=resume, console=Console(quiet=True))


def _figures(run: Run, key: str) -> list[float]:
    return [record[key] for record in run.records if key in record]


def _stored(tmp_path: Path) -> dict[str, np.ndarray]:
    """What was stored of both splits, by the names of their folders."""
    files = sorted((tmp_path / "cache").glob("*/logprobs"))
    return {file.parent.name: np.fromfile(file, "<f4") for file in files}


@pytest.mark.slow
def test_it_is_computed_once_and_the_same_again(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = "optimizer.mask.kind=none"  # Most of the time to compile is that of a mask.
    run = _train(write(), plain)
    first = _stored(tmp_path)
    assert len(first) == 2
    assert _figures(run, "loss")[0] == pytest.approx(np.log(2), rel=1e-6)
    assert _figures(run, "eval_loss")[0] == pytest.approx(np.log(2), rel=1e-6)
    assert _figures(run, "eval_loss")[-1] < np.log(2) - 1e-3
    for folder in first:
        shutil.rmtree(tmp_path / "cache" / folder)
    monkeypatch.setattr("train.sft._fit", _stop)
    with pytest.raises(StopHereError):
        _train(write(), plain, f"run={run.folder}-again")
    again = _stored(tmp_path)
    assert again.keys() == first.keys()
    for folder, values in first.items():
        np.testing.assert_array_equal(values.view(np.uint32), again[folder].view(np.uint32))
    monkeypatch.setattr(module, "load_params", lambda *_: 1 / 0)  # Nothing is missing.
    with pytest.raises(StopHereError):
        _train(write(), plain, f"run={run.folder}-other")


@pytest.mark.slow
def test_a_run_is_not_resumed_with_another_reference(
    write: Write, tiny_model: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    objective = {"kind": "dpo", "reference": str(base)}
    file = write(objective=objective)
    run = _train(file)
    (run.checkpoints / "2").rename(run.folder / "set-aside")
    weights = base / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(UserError, match="was started with other contents: the reference model"):
        _train(file, resume=True)
    assert len(_stored(tmp_path)) == 2


def test_a_reference_with_other_tokens_is_refused(
    write: Write, tiny_model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace("<|pad|>", "<|fill|>"))
    config = load_config(write(objective={"kind": "ipo", "reference": str(other)}))
    tokenizer = load_tokenizer(tiny_model)
    with pytest.raises(UserError, match=r"objective.reference: .* has another tokenizer than"):
        find_reference(config, tiny_model, tokenizer)


def test_an_objective_without_a_reference_has_none(write: Write, tiny_model: Path) -> None:
    config = load_config(write(objective={"kind": "orpo"}))
    assert find_reference(config, tiny_model, None).digest == ""


def test_the_architecture_is_part_of_the_digest(
    write: Write, tiny_model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    config = load_config(write())
    same = find_reference(config, other, None).digest
    assert same == find_reference(config, tiny_model, None).digest
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-3}))
    assert find_reference(config, other, None).digest != same


@pytest.mark.slow
@pytest.mark.usefixtures("all_devices")
@pytest.mark.parametrize("kind", ["robust_dpo", "hinge", "ipo", "simpo", "orpo"])
def test_every_objective_trains(write: Write, kind: str) -> None:
    objective = {"kind": kind} | ({"label_smoothing": 0.1} if kind == "robust_dpo" else {})
    run = _train(write(steps=6, objective=objective, mesh={"fsdp": 4, "tensor": 2}))
    losses = _figures(run, "eval_loss")
    assert losses[-1] < losses[0]
    assert ("kl" in run.records[-2]) == (kind not in ("simpo", "orpo"))


@pytest.mark.slow
@pytest.mark.usefixtures("all_devices")  # Its process has all of them.
def test_a_killed_run_ends_with_the_same_bits(write: Write, tmp_path: Path) -> None:
    file = write(steps=40, checkpoint={"every": 5}, evaluation={"every": 20})
    whole = _train(file)
    stored = _stored(tmp_path)
    killed = Run(Path(f"{whole.folder}-killed"))
    command = [sys.executable, "-m", "train", "dpo", "--config", str(file), f"run={killed.folder}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    for _ in range(6000):
        if len(killed.records) >= 12 or process.poll() is not None:
            break
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was to be killed on the way"
    _train(file, f"run={killed.folder}", resume=True)
    for key in ("loss", "eval_loss", "rewards/margin", "kl"):
        assert _figures(killed, key) == _figures(whole, key), key
    assert _stored(tmp_path).keys() == stored.keys()
    folders = [r.folder for r in (whole, killed)]
    weights = [export_run(f, tmp_path / f"{f.name}-out", "float32") for f in folders]
    first, second = (load_file(folder / "model.safetensors") for folder in weights)
    for name, array in first.items():
        np.testing.assert_array_equal(array.view(np.uint32), second[name].view(np.uint32), name)


@pytest.mark.slow
def test_neither_the_mesh_nor_microbatches_change_the_training(
    write: Write, all_devices: list[jax.Device], tmp_path: Path
) -> None:
    """Eight devices with microbatches give the losses, gradients and metrics of one device."""
    overrides = ["data.eval_fraction=0.2", "optimizer.mask.kind=none", "batch.size=8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: all_devices[:1])
        alone = _train(write(), *overrides)
    spread = _train(
        write(), *overrides, f"run={tmp_path / 'spread'}", "batch.num_microbatches=2",
        "mesh={fsdp: 4, tensor: 2}",
    )  # fmt: skip
    for key in ("loss", "eval_loss", "grad_norm", "rewards/margin", "kl", "logprobs/chosen"):
        np.testing.assert_allclose(
            _figures(spread, key), _figures(alone, key), rtol=2e-4, atol=1e-5, err_msg=key
        )


@pytest.mark.slow
@pytest.mark.usefixtures("all_devices")
@pytest.mark.parametrize("packing", ["none", "packed"])
def test_the_planned_step_is_the_one_that_runs(
    write: Write, monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    batch, mesh = {"size": 8, "num_microbatches": 2}, {"fsdp": 4, "tensor": 2}
    config = load_config(write(batch=batch, mesh=mesh, data={"packing": packing}))
    texts = []

    def loop(state: Any, parts: Any, *_: Any, **__: Any) -> Any:
        batch, _ = next(parts.loader)
        texts.append(parts.train_step.lower(state, batch).as_text())
        raise StopHereError

    monkeypatch.setattr("train.fit.train", loop)
    with pytest.raises(StopHereError):
        sft(config, console=Console(quiet=True))
    program = Program(config, load_model_config(Path(config.model.path)), make_mesh(**mesh), 2)
    with jax.set_mesh(program.mesh):
        lowered = program.train_step().lower(program.abstract_state(), program.abstract_batch())
    assert lowered.as_text() == texts[0]


@pytest.mark.slow
def test_evaluation_data_by_name_has_its_own(write: Write, pairs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(pairs.read_text().replace("+", " plus ").splitlines(True)[:10]))
    more = [f"evaluation.data.other={other}", "optimizer.mask.kind=none"]
    keep = "checkpoint.keep_best=eval_other_rewards/margin"
    run = _train(write(), *more, keep)
    assert len(_stored(tmp_path)) == 3
    for name in ("eval_loss", "eval_other_loss"):
        assert _figures(run, name)[0] == pytest.approx(np.log(2), rel=1e-6)
    assert _figures(run, "eval_other_loss")[-1] != _figures(run, "eval_loss")[-1]
    assert len(_figures(run, "eval_other_accuracy")) == len(_figures(run, "eval_accuracy"))
    # Data may be added to a run that goes on, and not be changed.
    third = f"evaluation.data.third={pairs}".replace("pairs", "third")
    (tmp_path / "third.jsonl").write_text(other.read_text().replace("plus", "and"))
    _train(write(), *more, third, resume=True)
    other.write_text(other.read_text().replace("plus", "minus"))
    shutil.rmtree(run.checkpoints / "2")
    with pytest.raises(UserError, match="evaluation data other changed under the same path"):
        _train(write(), *more, resume=True)
