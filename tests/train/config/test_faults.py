"""A fault is reported in one line: the key, what is wrong, and what to do."""

from pathlib import Path

import pytest

from train.config import load_config
from train.errors import UserError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.learning_rate=1", "unknown key optimiser; did you mean optimizer?"),
        ("xyz=1", "unknown key xyz; known: run, model, data, "),
        ("data.weight=2", "it belongs to a source: data.train={path: …, weight: …}"),
        ("learning_rate=1", "unknown key learning_rate; it belongs elsewhere: optimizer.learning_"),
        ("optimizer.mask_ratio=1", "it belongs elsewhere: optimizer.mask.mask_ratio"),
        ("model.every=1", "optimizer.mask.every or evaluation.every or checkpoint.every"),
        ("mesh.fdsp=1", "unknown key mesh.fdsp; did you mean mesh.fsdp?"),
        ("steps=0", "steps: input should be greater than or equal to 1, got 0"),
        ("batch.size=many", "batch.size: input should be a valid integer"),
        ("batch={size: 3, num_microbatches: 2}", "batch: size 3 is not a multiple of"),
        ("model.compute_dtype=int8", "compute_dtype: input should be 'float32' or 'bfloat16'"),
        ("mesh=3", "mesh: must contain keys and values, got 3"),
        ("model={}", "model.path is missing; set it"),
        ("data.train=[]", "data.train: value should have at least 1 item"),
        ("data.train=[{path: x, wait: 1}]", "did you mean data.train.0.weight?"),
        ("data.train=[{weight: 1}]", "data.train.0.path is missing; set it"),
        ("data.columns={question: q}", "data.columns: unknown field 'question'; known fields: "),
    ],
)  # fmt: skip
def test_a_fault_in_a_section(minimal: Path, override: str, message: str) -> None:
    assert message in _message(minimal, override)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("{mask_rato: 0.5}", "optimizer.mask.mask_rato; did you mean optimizer.mask.mask_ratio?"),
        ("{kind: lisa, num_layer: 3, every: 2}", "did you mean optimizer.mask.num_layers?"),
        ("{mask_ratio: 1.5}", "mask.mask_ratio: input should be less than or equal to 1, got 1.5"),
        ("{kind: every_few}", "optimizer.mask.every is required when kind is 'every_few'"),
        ("{every: 2}", "optimizer.mask.every has no effect when kind is 'gmt_mask'; remove it"),
        ("{kind: none, mask_ratio: 0.2}", "replace the section with optimizer.mask={kind: none}"),
        ("{kind: hft, every: 2, mask_ratio: 0.2}", "mask_ratio has no effect when kind is 'hft'"),
        ("{kind: fishr}", "optimizer.mask.kind: unknown kind 'fishr'; did you mean 'fisher'?"),
        ("{kind: 3}", "optimizer.mask.kind: unknown kind '3'; known: 'gmt_mask', 'gmt', "),
        ("3", "optimizer.mask: must contain keys and values, got 3"),
        ("{mask_ratios: {'(': 0.1}}", "mask.mask_ratios: '(' is not a regular expression"),
        ("{mask_ratios: {a: 2}}", "optimizer.mask.mask_ratios.a: input should be less than"),
        ("{scope: global, mask_ratios: {a: 0}}", "optimizer.mask: scope global has one mask_ratio"),
    ],
)  # fmt: skip
def test_a_fault_in_a_section_of_several_kinds(minimal: Path, mask: str, message: str) -> None:
    assert message in _message(minimal, f"optimizer.mask={mask}")


def _message(file: Path, override: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(file, [override])
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    return message
