"""Whole runs of a tiny model: learning, meshes, masks, export."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from rich.console import Console

from train.__main__ import main
from train.config import load_config
from train.errors import UserError
from train.generate import Sampling
from train.restore import complete_prompts, export_run
from train.run import Run, read_records
from train.sft import sft

pytestmark = pytest.mark.usefixtures("two_devices")

Write = Callable[..., Path]

# Whole runs share their programs where a test is not about them: two devices, six updates, eight
# rows. Every other shape, mask, mesh or number of updates costs a compilation.


def _train(file: Path, *overrides: str, resume: bool = False) -> Run:
    config = load_config(file, overrides)
    sft(config, resume=resume, console=Console(quiet=True))
    return Run(Path(config.run))


def _losses(run: Run, key: str = "loss") -> list[float]:
    return [r[key] for r in read_records(run.metrics_file) if key in r]


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


def test_reading_a_live_run_leaves_its_save_alone(write_config: Write, tmp_path: Path) -> None:
    run = _train(write_config())
    saving = run.checkpoints / "8.orbax-checkpoint-tmp"
    saving.mkdir()
    export_run(run.folder, tmp_path / "out", "float32")
    assert saving.is_dir()


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


@pytest.mark.parametrize("command", ["sft", "plan", "data check"])
def test_rows_beyond_the_models_positions_are_one_line(
    write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    argv = [*command.split(), "--config", str(write_config()), "data.max_length=1024"]
    assert main(argv) == 2
    assert capsys.readouterr().err == (
        "gmt-train: error: data.max_length is 1,024, and the model has 256 positions; "
        "set data.max_length to that or less\n"
    )
    assert not (tmp_path / "run").exists()


def test_prompts_that_the_model_cannot_complete_end_the_run_before_it_begins(
    write_config: Write, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"prompt 1 has .* more than the model's 256 positions"):
        _train(write_config(evaluation={"prompts": ["x" * 300]}))
    assert not (tmp_path / "run").exists()


SETTINGS = {"steps": 2, "export_dtype": "float32", "log_every": 1, "batch": {"size": 8}}


def test_rows_in_memory_are_trained_on(
    tiny_model: Path, tiny_data: Path, cache: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in tiny_data.read_text().splitlines()]
    model = {"path": str(tiny_model), "compute_dtype": "float32"}
    config = {**SETTINGS, "run": str(tmp_path / "run"), "cache": str(cache), "model": model}
    config["data"] = {"max_length": 64}
    config["evaluation"] = {"max_new_tokens": 4}
    console = Console(quiet=True)
    run = sft(config, rows=rows[:32], eval_rows=rows[32:], console=console)
    assert [r["step"] for r in run.records if "loss" in r] == [1, 2]
    assert (run.export / "README.md").is_file()
    # Without prompts in the config, those of the evaluation data are completed.
    prompts = [rows[n]["messages"][0]["content"] for n in (32, 33)]
    assert {sample["step"] for sample in run.samples} == {0, 2}
    assert {sample["prompt"] for sample in run.samples} == {
        f"user\n{prompt}\nassistant\n" for prompt in prompts
    }
    again = sft(config, rows=rows[:32], eval_rows=rows[32:], resume=True, console=console)
    assert again.records == run.records
    with pytest.raises(UserError, match=r"started with another data\.train"):
        sft(config, rows=rows[:31], eval_rows=rows[32:], resume=True, console=console)
    with pytest.raises(UserError, match=r"data\.train is set and rows are given"):
        sft({**config, "data": {"train": "d.jsonl"}}, rows=rows, console=console)


def test_settings_alone_are_a_config(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    settings = [f"model.path={tiny_model}", f"data.train={tiny_data}", f"run={tmp_path / 'run'}"]
    config = load_config(None, settings)
    assert config.model.path == str(tiny_model)
    assert main(["sft", *settings[:2]]) == 2


def test_a_setting_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", "model.path=m", "data.train=d.jsonl"]) == 2
    assert capsys.readouterr().err == "gmt-train: error: settings: run is missing; set it\n"
