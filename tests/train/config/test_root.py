"""Configs are read from files and settings, checked, written out and compared."""

from pathlib import Path

import pytest

from train.config import differing_keys, dump_config, load_config
from train.errors import UserError

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_shipped_config_is_valid(file: Path) -> None:
    config = load_config(file)
    assert config.run == f"runs/{file.stem}"
    assert config.optimizer.mask.kind == ("one_off" if file.stem == "one-off" else "gmt_mask")


def test_every_experiment_of_the_paper_has_a_config() -> None:
    found = {(load_config(f).model.path, load_config(f).data.train[0].path) for f in CONFIGS}
    code, math = "ise-uiuc/Magicoder-Evol-Instruct-110K", "meta-math/MetaMathQA"
    tulu = "allenai/tulu-v2-sft-mixture"
    assert {
        ("mistralai/Mistral-7B-v0.1", code),
        ("deepseek-ai/deepseek-coder-6.7b-base", code),
        ("mistralai/Mistral-7B-v0.1", math),
        ("meta-llama/Meta-Llama-3-8B", math),
        ("meta-llama/Llama-2-7b-hf", tulu),
        ("meta-llama/Llama-2-13b-hf", tulu),
    } <= found


def test_settings_override_the_file(minimal: Path) -> None:
    settings = ["optimizer.learning_rate=1e-5", "optimizer.mask.mask_ratio=0.5", "steps=3"]
    config = load_config(minimal, settings)
    assert config.optimizer.learning_rate == 1e-5
    assert config.optimizer.mask.mask_ratio == 0.5
    assert config.steps == 3


def test_the_dumped_config_reads_back_equal(minimal: Path, tmp_path: Path) -> None:
    settings = ["evaluation.prompts=[hello, 'two\\nlines']", "optimizer.mask={kind: hft, every: 2}"]
    config = load_config(minimal, settings)
    saved = tmp_path / "saved.yaml"
    saved.write_text(dump_config(config), encoding="utf-8")
    assert load_config(saved) == config


def test_all_faults_are_reported_at_once(minimal: Path) -> None:
    with pytest.raises(UserError, match=r"steps: .*; .*unknown key sede.*seed"):
        load_config(minimal, ["steps=-1", "sede=3"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: a\nrun: b\n", "c.yaml:2: the key 'run' occurs twice"),
        ("- a\n", "c.yaml: must contain keys and values"),
        ("run: a\n", "c.yaml: model is missing; set it"),
    ],
)
def test_a_fault_is_reported_with_its_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(file)
    assert message in str(caught.value)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml")


def test_a_stream_needs_a_number_of_steps(minimal: Path) -> None:
    stream = "data={train: d.jsonl, streaming: true, eval_fraction: 0}"
    with pytest.raises(UserError, match=r"steps is required when data\.streaming is true"):
        load_config(minimal, [stream])
    assert load_config(minimal, [stream, "steps=2"]).steps == 2


def test_differing_keys_are_named_in_full(minimal: Path) -> None:
    plain = load_config(minimal)
    assert differing_keys(plain, plain, frozenset()) == []
    other = load_config(minimal, ["seed=1", "run=r", "optimizer.mask={kind: one_off, warmup: 3}"])
    keys = differing_keys(plain, other, frozenset({"run"}))
    assert set(keys) >= {"seed", "optimizer.mask.kind", "optimizer.mask.warmup"}
    assert "run" not in keys
    assert all(key.startswith(("seed", "optimizer.mask.")) for key in keys)


def test_the_best_is_kept_by_a_metric_that_can_be_measured(minimal: Path) -> None:
    with pytest.raises(UserError, match=r"evaluation\.patience needs checkpoint\.keep_best"):
        load_config(minimal, ["evaluation.patience=2"])
    best = "checkpoint.keep_best=eval_loss"
    config = load_config(minimal, ["evaluation.patience=2", best, "evaluation.data.task=a.jsonl"])
    assert [source.path for source in config.evaluation.data["task"]] == ["a.jsonl"]
    with pytest.raises(UserError, match="there is no evaluation data"):
        load_config(minimal, ["data.eval_fraction=0", best])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("evaluation.data={task: {path: a, splt: b}}", r"splt.*did you mean .*split"),
        ("evaluation.data={task: {split: b}}", r"evaluation\.data\.task.*path is missing"),
        ("evaluation.data=a.jsonl", r"evaluation\.data: .*, got 'a\.jsonl'"),
    ],
)
def test_faults_of_evaluation_data_are_located(minimal: Path, setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(minimal, [setting])


def test_a_profile_begins_before_the_last_update(minimal: Path) -> None:
    assert load_config(minimal, ["steps=3", "profile.start=2"]).profile.steps == 3
    with pytest.raises(UserError, match=r"profile\.start 3 is not before the last of 3 steps"):
        load_config(minimal, ["steps=3", "profile.start=3"])


def test_adapters_take_the_place_of_a_mask(minimal: Path) -> None:
    config = load_config(minimal, ["lora.rank=4", "lora.target_modules=[q_proj, q_proj, v_proj]"])
    assert config.optimizer.mask.kind == "none"
    assert config.lora is not None
    assert config.lora.target_modules == ("q_proj", "v_proj")
    kept = load_config(minimal, ["lora.rank=4", "optimizer.learning_rate=0.5"])
    assert (kept.optimizer.mask.kind, kept.optimizer.learning_rate) == ("none", 0.5)
    with pytest.raises(UserError, match=r"takes no mask, and optimizer\.mask\.kind is one_off"):
        load_config(minimal, ["lora.rank=4", "optimizer.mask.kind=one_off"])
