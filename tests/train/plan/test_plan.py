"""Train steps compiled without weights, for the devices here and for a TPU slice."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from train.__main__ import main
from train.config import load_config
from train.model import abstract_params, load_model_config
from train.plan.plan import CompiledStep, StepPlan, plan_step, search

Write = Callable[..., Path]
Pretend = Callable[..., CompiledStep]
NEEDS_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the compiler for TPU, exists for Linux on x86-64",
)
MODELS = Path(__file__).parents[3] / "configs" / "models"


@pytest.fixture
def architecture(tiny_model: Path, tmp_path: Path) -> Path:
    """A model's folder that holds nothing but its config.json."""
    folder = tmp_path / "architecture"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    return folder


def _plan(config: Any, topology: str | None = None, **options: bool) -> StepPlan:
    options = {"plain": False, "explore": False} | options
    return plan_step(config, topology, on_compiled=lambda _: None, **options)


def test_the_state_is_what_its_shapes_say(write_config: Write, architecture: Path) -> None:
    override = [f"model.path={architecture}", "optimizer.mask.kind=none"]
    plan = _plan(load_config(write_config(data={"max_length": 32}), override))
    leaves = jax.tree.leaves(abstract_params(load_model_config(architecture)))
    whole = 4 * sum(leaf.size for leaf in leaves)
    kept = plan.given.resident
    assert whole / 8 <= kept["parameters"] < whole / 7.5
    assert kept["optimizer state"] == pytest.approx(2 * kept["parameters"], rel=0.01)
    assert kept["batch"] == 3 * 4 * 1 * 32
    assert plan.given.peak_bytes is not None
    assert plan.given.peak_bytes > sum(kept.values()) + plan.given.gradient_bytes
    assert plan.given.fits is None
    assert plan.limit is None
    assert plan.unmasked is None


@pytest.mark.slow
@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_a_compact_step_holds_the_weights_once_and_its_draw_is_planned(
    write_config: Write, architecture: Path, num_microbatches: int
) -> None:
    mask = "optimizer.mask={kind: one_off, mask_ratio: 0.9, compact: true}"
    override = [f"model.path={architecture}", mask, "model.compute_dtype=bfloat16"]
    file = write_config(batch={"size": 16, "num_microbatches": num_microbatches})
    # Wide enough that each of eight devices has whole groups of 128 entries.
    wide = json.loads((architecture / "config.json").read_text())
    wide |= {"hidden_size": 1024, "intermediate_size": 2048, "num_key_value_heads": 4}
    (architecture / "config.json").write_text(json.dumps(wide))
    plan = _plan(load_config(file, override))
    leaves = jax.tree.leaves(abstract_params(load_model_config(architecture)))
    size = sum(leaf.size for leaf in leaves)
    kept = plan.given.resident
    # Two bytes a weight; a tenth of them have a position, a master and two moments.
    assert 8 * (kept["parameters"] + kept["optimizer state"]) < 3.5 * size
    assert plan.draw is not None
    assert plan.draw.peak_bytes is not None


@NEEDS_LIBTPU
@pytest.mark.slow
def test_adapters_are_planned_beside_plain_fine_tuning_for_one_chip(
    write_config: Write, architecture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_config(model={"path": str(architecture), "compute_dtype": "bfloat16"})
    command = ["plan", "--config", str(file), "lora.rank=4", "--topology", "v6e:1x1"]
    assert main([*command, "--no-search"]) == 0
    out = capsys.readouterr().out
    assert "1 devices, TPU v6 lite: data 1, fsdp 1, context 1, tensor 1" in out
    assert re.search(r"lora of rank 4 +mask none +lora adds", out)
    assert "… of lora" in out


@NEEDS_LIBTPU
def test_the_price_of_the_mask_on_a_slice(
    write_config: Write, architecture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_config(batch={"size": 8, "num_microbatches": 2})
    path = f"model.path={architecture}"
    command = ["plan", "--config", str(file), path, "--topology", "v5e:2x2", "--no-search"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "4 devices, TPU v5 lite: data 1, fsdp 4, context 1, tensor 1" in out
    assert "mask gmt_mask, 2 microbatches of 1 row a device" in out
    assert "the mask adds" in out
    assert "all-reduce, each pass of a search" in out
    assert "16.00 GiB" in out
    assert "Mcycles" in out


@NEEDS_LIBTPU
def test_what_does_not_fit_exits_with_2_and_says_what_it_needs(
    write_config: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_config(optimizer={"mask": {"kind": "none"}})
    command = ["plan", "--config", str(file), "--topology", "v5e:2x2"]
    assert main([*command, f"model.path={MODELS / 'llama-2-13b'}"]) == 2
    output = capsys.readouterr()
    assert "does not fit" in output.out
    assert "split weights, optimizer state and gradients, 48.49 GiB of it" in output.err
    assert "more than the present 4 ways" in output.err


def test_here_it_prints_what_is_known(
    write_config: Write, architecture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, mask = f"model.path={architecture}", "optimizer.mask.kind=none"
    file = write_config(data={"max_length": 32})
    assert main(["plan", "--config", str(file), path, mask]) == 0
    out = capsys.readouterr().out
    assert "8 devices, cpu: data 1, fsdp 8, context 1, tensor 1" in out
    assert "8 rows of 32 tokens an update, 1 microbatch of 1 row a device" in out
    assert "all-gather" in out
    assert "fits" not in out
    assert "peak" not in out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.path=./nowhere", "nowhere"),
        ("mesh.tensor=3", "does not match the 8 devices"),
        ("batch={size: 6}", "not divisible by the 8 devices"),
    ],
)
def test_bad_settings(
    write_config: Write, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert main(["plan", "--config", str(write_config()), override]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("mistral-7b", 7_241_732_096),
        ("deepseek-coder-6.7b", 6_740_512_768),
    ],
)
def test_the_architectures_have_as_many_parameters_as_the_models(name: str, count: int) -> None:
    leaves = jax.tree.leaves(abstract_params(load_model_config(MODELS / name)))
    assert sum(leaf.size for leaf in leaves) == count


@pytest.mark.parametrize("given", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("largest", [0, 1, 2, 5, 8, 100])
def test_the_search_finds_the_largest_microbatch_that_fits(
    write_config: Write, pretend_step: Pretend, given: int, largest: int
) -> None:
    """64 rows over 4 devices."""

    def compiled(config: Any) -> CompiledStep:
        rows = 64 // config.batch.num_microbatches // 4
        return pretend_step(config, rows <= largest)

    config = load_config(write_config(batch={"size": 64, "num_microbatches": 64 // 4 // given}))
    start = compiled(config)
    found = search(start, compiled)
    assert len(found) <= 3
    best = StepPlan(start, None, None, tuple(found), 1).largest
    assert (best.rows_per_device if best else 0) == max(
        n for n in (0, 1, 2, 4, 8, 16) if n <= largest
    )


@pytest.mark.slow
def test_preferences_are_planned_beside_supervised_fine_tuning(
    write_config: Write, architecture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_config(data={"max_length": 32}, objective={"kind": "dpo"})
    settings = [f"model.path={architecture}", "optimizer.mask.kind=none", "batch.size=8"]
    assert main(["plan", "--no-search", "--config", str(file), *settings]) == 0
    out = capsys.readouterr().out
    assert "8 pairs of twice 32 tokens an update" in out
    # The reference's log-probabilities are all that a batch of pairs has more.
    (line,) = [line for line in out.splitlines() if "of that, the batch" in line]
    assert line.split()[-6:] == ["1.00", "KiB", "768", "B", "256", "B"]
    assert "dpo, mask none, 1 microbatch of 1 row a device" in out
    assert "\nmask none, 1 microbatch of 2 rows a device" in out
