"""The lines of a plan, and the advice for a step that does not fit."""

from collections.abc import Callable
from pathlib import Path

import pytest

from train.config import load_config
from train.plan.plan import CompiledStep, StepPlan
from train.plan.report import advice, format_bytes, summary

Write = Callable[..., Path]
Pretend = Callable[..., CompiledStep]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.00 KiB"),
        (-1536, "-1.50 KiB"),
        (2**50, "1,024.00 TiB"),
    ],
)
def test_bytes_are_written_in_the_largest_unit(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_one_line_sums_up_a_compilation(write_config: Write, pretend_step: Pretend) -> None:
    config = load_config(
        write_config(
            batch={"size": 64, "num_microbatches": 4}, optimizer={"mask": {"kind": "none"}}
        )
    )
    assert summary(pretend_step(config)) == (
        "mask none, 4 microbatches of 4 rows a device: 261 B a device, does not fit "
        "(compiled in 0 s)"
    )


@pytest.mark.parametrize(
    ("size", "mesh", "limit", "text"),
    [
        (64, {}, 150, "; split weights, optimizer state and gradients, 161 B of it, more than the"),
        (64, {}, 150, "than the present 4 ways: over more devices along mesh.fsdp (13 ways"),
        (64, {"data": 2}, 150, "along mesh.fsdp, or those along mesh.data (13 ways"),
        (64, {}, 250, "; raise batch.num_microbatches; or set model.remat=full; or set opt"),
        (
            4,
            {},
            250,
            "; set model.remat=full; or set optimizer.mu_dtype=bfloat16, which saves 20 B",
        ),
        (
            4,
            {},
            250,
            "; or shorten data.max_length; or split rows over mesh.context or mesh.tensor",
        ),
        (4, {}, 250, "; or split weights, optimizer state and gradients"),
        (4, {}, 250, "(5 ways or more in all)"),
    ],
)
def test_what_to_change(
    write_config: Write,
    pretend_step: Pretend,
    size: int,
    mesh: dict[str, int],
    limit: int,
    text: str,
) -> None:
    config = load_config(write_config(batch={"size": size}))
    assert text in advice(StepPlan(pretend_step(config, **mesh), None, None, (), limit))


def test_a_smaller_microbatch_that_fits_is_what_to_change(
    write_config: Write, pretend_step: Pretend
) -> None:
    large, small = (
        load_config(write_config(batch={"size": 64, "num_microbatches": number}))
        for number in (1, 4)
    )
    plan = StepPlan(pretend_step(large), None, None, (pretend_step(small, fits=True),), 300)
    assert "set batch.num_microbatches=4, which fits" in advice(plan)
