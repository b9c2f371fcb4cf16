"""The planned program is the one that runs, and how it splits weights."""

import dataclasses
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from rich.console import Console

from train.config import load_config
from train.errors import UserError
from train.model import abstract_params, load_model_config
from train.plan.hlo import program_cost
from train.program import Program, keep_compiled
from train.sft import sft
from train.sharding import make_mesh


class StopHereError(Exception):
    """Raised instead of running the loop."""


@pytest.mark.parametrize("packing", ["none", "packed"])
def test_the_planned_step_is_the_one_that_sft_runs(
    write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    batch = {"size": 16, "num_microbatches": 2}
    mesh = {"fsdp": 4, "tensor": 2}
    config = load_config(write_config(batch=batch, mesh=mesh), [f"data.packing={packing}"])
    texts = []

    def loop(state: Any, parts: Any, *_: Any, **__: Any) -> Any:
        batch, _ = next(parts.loader)
        texts.append(parts.train_step.lower(state, batch).as_text())
        raise StopHereError

    monkeypatch.setattr("train.fit.train", loop)
    with pytest.raises(StopHereError):
        sft(config, resume=False, console=Console(quiet=True))
    model = load_model_config(Path(config.model.path))
    program = Program(config, model, make_mesh(**mesh), config.steps or 1)
    with jax.set_mesh(program.mesh):
        lowered = program.train_step().lower(program.abstract_state(), program.abstract_batch())
    assert lowered.as_text() == texts[0]


def test_attention_that_the_devices_cannot_compute_is_refused_before_anything_is_written(
    write_config: Callable[..., Path],
) -> None:
    config = load_config(write_config(), ["model.attention=splash"])
    with pytest.raises(UserError, match="splash is for TPUs"):
        sft(config, resume=False, console=Console(quiet=True))
    assert not Path(config.run).exists()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("kind: lisa, num_layers: 9, every: 1", "cannot train 9 of 2 layers"),
        ("kind: one_off, compact: true, mask_ratios: {embed|norm: 0.999}", "norm.* take 0.996 or"),
        ("kind: one_off, selection: balanced, mask_ratios: {embed|norm: 0.999}", "norm.* take 0.9"),
    ],
)
def test_a_mask_that_does_not_fit_the_model_is_refused_before_anything_is_written(
    write_config: Callable[..., Path], mask: str, message: str
) -> None:
    config = load_config(write_config(), [f"optimizer.mask={{{mask}}}"])
    with pytest.raises(UserError, match=f"^optimizer.mask: .*{message}"):
        sft(config, resume=False, console=Console(quiet=True))
    assert not Path(config.run).exists()


@pytest.mark.parametrize("folder", [None, "elsewhere"])
def test_compiled_programs_are_kept_in_the_cache_unless_jax_has_a_folder(
    write_config: Callable[..., Path], folder: str | None
) -> None:
    config = load_config(write_config())
    name = "jax_compilation_cache_dir"
    before = getattr(jax.config, name)
    try:
        jax.config.update(name, folder)
        keep_compiled(config)
        assert getattr(jax.config, name) == (folder or f"{config.cache}/xla")
    finally:
        jax.config.update(name, before)


def _program(file: Path, mesh: dict[str, int], *overrides: str) -> Program:
    axes = [f"mesh.{axis}={size}" for axis, size in mesh.items()]
    config = load_config(file, [*axes, *overrides])
    model = load_model_config(Path(config.model.path))
    # Enough layers that one of them is far smaller than their stack.
    model = dataclasses.replace(model, num_hidden_layers=16, windows=(None,) * 16)
    return Program(config, model, make_mesh(**mesh), config.steps or 1)


# Most of the time to compile is the search of the mask.
@pytest.mark.parametrize("mask", ["none", pytest.param("gmt_mask", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "mesh", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "context": 4}], ids=str
)
def test_weights_are_gathered_layer_by_layer(
    write_config: Callable[..., Path], mesh: dict[str, int], mask: str
) -> None:
    program = _program(write_config(), mesh, f"optimizer.mask.kind={mask}")
    with jax.set_mesh(program.mesh):
        lowered = program.train_step().lower(program.abstract_state(), program.abstract_batch())
    collectives = program_cost(lowered.compile().as_text()).step.collectives
    gathers = [op.size for op in collectives if op.kind == "all-gather"]
    params = abstract_params(program.model)
    layers = [4 * leaf.size for leaf in jax.tree.leaves(params.pop("layers"))]
    whole = max(4 * leaf.size for leaf in jax.tree.leaves(params))  # the embeddings, the head
    assert min(gathers) < max(gathers) <= max(whole, max(layers) // 16)
    assert max(layers) > 2 * max(gathers)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_compact_mask_adds_no_larger_exchange(
    write_config: Callable[..., Path], mesh: dict[str, int]
) -> None:
    masks = "{kind: none}", "{kind: one_off, mask_ratio: 0.95, compact: true}"
    largest = []
    for mask in masks:
        program = _program(write_config(), mesh, f"optimizer.mask={mask}")
        shapes = program.abstract_state(), program.abstract_batch()
        with jax.set_mesh(program.mesh):
            text = program.train_step().lower(*shapes).compile().as_text()
        largest.append(max(op.size for op in program_cost(text).step.collectives))
    assert largest[1] <= largest[0]


def test_no_device_ever_holds_more_than_its_part_of_a_fresh_state(
    write_config: Callable[..., Path],
) -> None:
    program = _program(write_config(), {"fsdp": 8})
    state = program.abstract_state()
    init = jax.jit(program.optimizer.init, out_shardings=program.shardings.opt_state)
    memory = init.lower(state.params).compile().memory_analysis()
    weights = sum(4 * leaf.size for leaf in jax.tree.leaves(abstract_params(program.model)))
    assert memory.argument_size_in_bytes < 1.05 * weights / 8
    assert memory.output_size_in_bytes < 1.1 * 2 * weights / 8
    assert memory.temp_size_in_bytes < 0.05 * weights / 8


def _unordered(hlo: str) -> list[tuple[str, str]]:
    """Pairs of a loop with exchanges and an exchange of which neither needs the other's result."""
    exchange = re.compile(r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)")
    computations: dict[str, dict[str, str]] = {}
    for line in hlo.splitlines():
        if header := re.match(r"(?:ENTRY )?(%[\w.\-]+) .*{$", line):
            body = computations[header[1]] = {}
        elif found := re.match(r" +(?:ROOT )?(%[\w.\-]+) = (.*)", line):
            body[found[1]] = re.split(r", metadata=", " " + found[2])[0]

    def loops(name: str) -> bool:
        """Whether a computation has an exchange, in itself or in what it calls."""
        return any(
            exchange.search(text)
            or any(map(loops, re.findall(r"(?:body|calls|to_apply)=(%[\w.\-]+)", text)))
            for text in computations.get(name, {}).values()
        )

    pairs = []
    for body in computations.values():
        needs: dict[str, set[str]] = {}
        for name, text in body.items():
            operands = body.keys() & set(re.findall(r"%[\w.\-]+", text))
            needs[name] = operands.union(*(needs.get(operand, ()) for operand in operands))
        whiles = {
            name
            for name, text in body.items()
            if (called := re.search(r"body=(%[\w.\-]+)", text)) and loops(called[1])
        }
        exchanges = whiles | {name for name, text in body.items() if exchange.search(text)}
        pairs += [
            (a, b)
            for a, b in itertools.combinations(exchanges, 2)
            if whiles & {a, b} and a not in needs[b] and b not in needs[a]
        ]
    return pairs


@pytest.mark.parametrize(
    "override",
    [
        "optimizer={clip_norm: null, mask: {kind: gmt_mask, report: true}}",
        *(
            pytest.param(other, marks=pytest.mark.slow)
            for other in (
                "batch={num_microbatches: 2}",
                "optimizer={mask: {kind: one_off, mask_ratio: 0.9}}",
                "optimizer={mask: {kind: gmt, scope: global}}",
                "optimizer={clip_norm: null, mask: {kind: gmt_mask, tolerance: 0.01}}",
                "mesh={data: 2, fsdp: 2, tensor: 2}",
            )
        ),
    ],
)
def test_devices_take_the_exchanges_of_a_step_in_one_order(
    write_config: Callable[..., Path], override: str
) -> None:
    # XLA's CPU backend keeps no order between an exchange of a loop and one outside of it.
    program = _program(write_config(), {"fsdp": 8}, override)
    with jax.set_mesh(program.mesh):
        lowered = program.train_step().lower(program.abstract_state(), program.abstract_batch())
    hlo = lowered.compile().as_text()
    assert " while(" in hlo
    assert not _unordered(hlo)
