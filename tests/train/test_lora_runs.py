"""Whole runs that train low-rank adapters: they train, resume and export, and keep the base."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from train.config import load_config
from train.errors import UserError
from train.generate import Sampling
from train.hf.safetensors import open_weights
from train.manifest import read_manifest
from train.restore import complete_prompts, export_run, export_run_adapter
from train.run import Run, read_records
from train.sft import sft

pytestmark = pytest.mark.usefixtures("two_devices")

Write = Callable[..., Path]
LORA = "lora={rank: 4, alpha: 8}"


def _train(file: Path, *overrides: str, resume: bool = False) -> Run:
    config = load_config(file, overrides)
    sft(config, resume=resume, console=Console(quiet=True))
    return Run(Path(config.run))


def _losses(run: Run, key: str = "loss") -> list[float]:
    return [r[key] for r in read_records(run.metrics_file) if key in r]


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    with open_weights(folder) as reader:
        return {name: reader.tensor(name) for name in reader.names}


@pytest.mark.slow
def test_it_learns_and_the_export_has_the_products_added(
    write_config: Write, tiny_model: Path, tmp_path: Path
) -> None:
    run = _train(write_config(export_dtype="float32"), LORA)
    losses = _losses(run, "eval_loss")
    assert losses[-1] < losses[0] - 0.1
    base, tuned = _tensors(tiny_model), _tensors(run.export)
    adapter = _tensors(export_run_adapter(run.folder, None))
    for name, tensor in base.items():
        stem = "base_model.model." + name.removesuffix(".weight")
        product = np.zeros_like(tensor)
        if "_proj" in name:
            product = (
                2 * adapter.pop(f"{stem}.lora_B.weight") @ adapter.pop(f"{stem}.lora_A.weight")
            )
            assert np.linalg.matrix_rank(tuned[name] - tensor, tol=1e-5) == 4
        np.testing.assert_allclose(tuned[name], tensor + product, atol=1e-6)
    assert not adapter
    again = export_run(run.folder, tmp_path / "again", "float32")
    for name, tensor in _tensors(again).items():
        np.testing.assert_array_equal(tensor, tuned[name])
    sampling = Sampling(max_new_tokens=4)
    assert complete_prompts(str(run.folder), ["3+9="], sampling) == complete_prompts(
        str(run.export), ["3+9="], sampling
    )


def test_a_resumed_run_has_the_same_losses_and_its_checkpoints_no_base(
    write_config: Write, tmp_path: Path
) -> None:
    whole = _train(write_config(), LORA)
    # As if it had been killed after update 4.
    shutil.copytree(whole.folder, tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed/checkpoints/6")
    resumed = _train(write_config(run=str(tmp_path / "killed")), LORA, resume=True)
    assert _losses(resumed) == _losses(whole)
    assert _losses(resumed, "eval_loss") == _losses(whole, "eval_loss")
    arrays = read_manifest(whole.checkpoints / "6").facts["arrays"]
    assert arrays["params/values/layers/mlp/up/weight/a"] == "float32[2, 4, 32]"
    assert len([name for name in arrays if name.startswith("params/")]) == 2 * 7 + 1


@pytest.mark.slow
@pytest.mark.usefixtures("all_devices")
@pytest.mark.parametrize("mesh", ["{fsdp: 4, tensor: 2}", "{data: 2, fsdp: 2, context: 2}"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_every_mesh_gives_the_losses_of_one_device(
    write_config: Write, tmp_path: Path, mesh: str, microbatches: int, monkeypatch: Any
) -> None:
    file = write_config(steps=3, batch={"size": 16})
    spread = _train(file, LORA, f"mesh={mesh}", f"batch.num_microbatches={microbatches}")
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)
    alone = _train(file, LORA, f"run={tmp_path / 'alone'}")
    assert _losses(spread) == pytest.approx(_losses(alone), rel=1e-4)
    assert _losses(spread, "eval_loss") == pytest.approx(_losses(alone, "eval_loss"), rel=1e-4)


@pytest.mark.slow
def test_prompts_are_completed_with_the_adapter(write_config: Write) -> None:
    evaluation = {"prompts": ["3+9="], "max_new_tokens": 4}
    file = write_config(export_dtype="float32", evaluation=evaluation)
    # At a high rate, so that the base would go on otherwise.
    run = _train(file, LORA, "optimizer.learning_rate=0.3", "optimizer.clip_norm=null")
    before, after = (sample["completion"] for sample in run.samples)
    assert before != after
    assert complete_prompts(str(run.export), ["3+9="], Sampling(max_new_tokens=4)) == [after]


@pytest.mark.slow
def test_preferences_are_learnt_by_an_adapter(write_config: Write, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    with pairs.open("w") as out:
        for n in range(40):
            answers = {"chosen": n + n * n, "rejected": n + n * n + 7}
            sides = {k: [{"role": "assistant", "content": str(v)}] for k, v in answers.items()}
            prompt = [{"role": "user", "content": f"{n}+{n * n}="}]
            out.write(json.dumps({"prompt": prompt} | sides) + "\n")
    objective = {"kind": "dpo", "beta": 0.5, "reference": None}
    run = _train(write_config(objective=objective, data={"train": [str(pairs)]}), LORA)
    losses = _losses(run)
    assert losses[0] == pytest.approx(np.log(2), rel=1e-4)  # The adapter begins as no change.
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_a_run_without_an_adapter_has_none_to_export(write_config: Write) -> None:
    run = _train(write_config(steps=1, evaluation={"every": 100}))
    with pytest.raises(UserError, match="trains no adapter; export it without --adapter"):
        export_run_adapter(run.folder, None)


@pytest.mark.slow
def test_another_adapter_under_the_same_path_is_not_resumed_from(
    write_config: Write, tmp_path: Path
) -> None:
    first = _train(write_config(steps=2), LORA)
    adapter = export_run_adapter(first.folder, tmp_path / "adapter")
    start = f"lora.adapter={adapter}"
    run = f"run={tmp_path / 'second'}"
    second = _train(write_config(steps=4), LORA, start, run)
    assert _losses(second, "eval_loss")[0] == pytest.approx(_losses(first, "eval_loss")[-1])
    shutil.rmtree(second.checkpoints / "4")
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError, match="started with other contents: the adapter changed"):
        _train(write_config(steps=4), LORA, start, run, resume=True)
