"""Compiles a config's train step, without weights or data, to see what it needs of a device."""

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from ..config import Config
from ..config.masks import NoMask
from ..config.objectives import Sft
from ..draw import lower_draw
from ..flops import find_chip
from ..hf.hub import resolve_model
from ..model import load_model_config
from ..objective.preference import SIDES
from ..program import Program
from ..sharding import check_rows, make_mesh
from .hlo import ProgramCost, program_cost
from .topology import slice_devices

STEPS = 1000  # Stands in for a number of updates that only the data gives; it costs nothing.


@dataclass(frozen=True)
class CompiledStep:
    """A train step that was compiled, or that is too large to be; bytes are those of one device."""

    program: Program
    peak_bytes: int | None  # None if the compiler does not report it
    fits: bool | None  # None if a device's memory is not known
    cost: ProgramCost | None  # None if it could not be compiled
    seconds: float  # to compile

    @property
    def row_shards(self) -> int:
        """Parts into which the rows of a microbatch are split."""
        mesh = self.program.mesh
        return int(mesh.shape["data"] * mesh.shape["fsdp"])

    @property
    def num_microbatches(self) -> int:
        """Microbatches per update."""
        return self.program.config.batch.num_microbatches

    @property
    def rows_per_device(self) -> int:
        """Rows per device in one microbatch."""
        return self.program.config.batch.size // self.num_microbatches // self.row_shards

    @cached_property
    def resident(self) -> dict[str, int]:
        """Bytes that stay on a device between updates, by kind."""
        state = self.program.abstract_state()
        return {
            "parameters": bytes_per_device(state.params),
            "optimizer state": bytes_per_device(state.opt_state),
            "batch": bytes_per_device(self.program.abstract_batch()),
        }

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients, and of their sum if there are several microbatches."""
        trained = self.resident["parameters"]
        if self.program.has_base:
            trained = bytes_per_device(self.program.abstract_state().params.values)
        return trained * (1 if self.num_microbatches == 1 else 2)

    @property
    def fixed_bytes(self) -> int:
        """Bytes that do not depend on the size of a microbatch."""
        return sum(self.resident.values()) + self.gradient_bytes


@dataclass(frozen=True)
class StepPlan:
    """All steps that `plan` compiled."""

    given: CompiledStep
    draw: CompiledStep | None  # what a compact mask is drawn with, before the first update
    unmasked: CompiledStep | None  # the same step without its mask or adapters, if it has them
    searched: tuple[CompiledStep, ...]  # the same step with other numbers of microbatches
    limit: int | None  # bytes of a device's memory; None if not known
    supervised: CompiledStep | None = None  # sft on as many tokens, for preferences

    @property
    def largest(self) -> CompiledStep | None:
        """The compiled step with the largest microbatch that fits."""
        fitting = [step for step in (self.given, *self.searched) if step.fits]
        return max(fitting, key=lambda step: step.rows_per_device, default=None)


def plan_step(
    config: Config,
    topology: str | None,
    *,
    slices: int = 1,
    plain: bool,
    explore: bool,
    on_compiled: Callable[[CompiledStep], None],
) -> StepPlan:
    """Compiles the config's step for the devices here or for a TPU slice.

    Args:
      slices: how many slices, joined by the network between slices.
      plain: also compile the step without its mask and, if it learns from preferences, that of
        supervised fine-tuning on as many tokens.
      explore: also compile other numbers of microbatches, until the largest microbatch that fits
        is known.
      on_compiled: called with each step after its compilation, which may take minutes.

    Raises:
      UserError: where model, mesh and batch do not go together, or there is no such slice.
    """
    devices = slice_devices(topology, slices) if topology else jax.devices()
    mesh = make_mesh(**config.mesh.model_dump(), devices=devices)
    rows = config.batch.size // config.batch.num_microbatches
    check_rows(mesh, rows, config.data.max_length)
    folder = resolve_model(config.model.path, config.model.revision, ["config.json"])
    model = load_model_config(folder)
    limit = _device_memory(devices[0])

    def compile_config(config: Config) -> CompiledStep:
        step = _compile(Program(config, model, mesh, config.steps or STEPS), limit)
        on_compiled(step)
        return step

    with _cache_bypassed() if topology else nullcontext():
        given = compile_config(config)
        draw = _compile_draw(given.program, limit) if given.cost else None
        masked = config.optimizer.mask.kind != "none" or config.lora is not None
        plain = plain and given.cost is not None
        unmasked = compile_config(_unmasked(config)) if plain and masked else None
        paired = config.objective.is_preference
        supervised = compile_config(_supervised(config)) if plain and paired else None
        may_fit = limit is not None and given.fixed_bytes < limit
        searched = search(given, compile_config) if explore and may_fit else []
    return StepPlan(given, draw, unmasked, tuple(searched), limit, supervised)


def _unmasked(config: Config) -> Config:
    optimizer = config.optimizer.model_copy(update={"mask": NoMask(kind="none")})
    return config.model_copy(update={"optimizer": optimizer, "lora": None})


def _supervised(config: Config) -> Config:
    """Supervised fine-tuning on rows that are both answers of a pair."""
    batch = config.batch.model_copy(update={"size": SIDES * config.batch.size})
    return config.model_copy(update={"objective": Sft(), "batch": batch})


@contextmanager
def _cache_bypassed() -> Iterator[None]:
    """Keeps programs for a slice out of jax's compilation cache, which cannot load them again."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _device_memory(device: jax.Device) -> int | None:
    """Bytes of memory that jax may use on a device of this process, else those of its kind."""
    if device in jax.local_devices() and (stats := device.memory_stats()):
        return int(stats["bytes_limit"])
    chip = find_chip(device.device_kind)
    return chip.memory if chip else None


def _compile(program: Program, limit: int | None) -> CompiledStep:
    shapes = program.abstract_state(), program.abstract_batch()
    with jax.set_mesh(program.mesh):
        return _compiled(program, program.train_step().lower(*shapes), limit)


def _compile_draw(program: Program, limit: int | None) -> CompiledStep | None:
    with jax.set_mesh(program.mesh):
        lowered = lower_draw(program)
        return None if lowered is None else _compiled(program, lowered, limit)


def _compiled(program: Program, lowered: Any, limit: int | None) -> CompiledStep:
    start = time.perf_counter()
    with jax.set_mesh(program.mesh):
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            seconds = time.perf_counter() - start
            return CompiledStep(program, required_bytes(str(error)), False, None, seconds)
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    if program.mesh.devices.flat[0].platform == "tpu":
        # The temporary sizes of a TPU program add up to more than it is given.
        peak = memory.peak_memory_in_bytes
    else:
        peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
        peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    fits = None if limit is None else peak <= limit
    return CompiledStep(program, peak, fits, program_cost(compiled.as_text()), seconds)


def required_bytes(message: str) -> int | None:
    """The memory that a program needs, from the message of a compiler that ran out of it.

    >>> required_bytes("total memory required (19.50G) exceeds available HBM (15.75G)")
    20937965568
    """
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds available", message)
    return round(float(found[1]) * 1024 ** (1 + "KMGT".index(found[2]))) if found else None


def search(
    given: CompiledStep, compile_config: Callable[[Config], CompiledStep]
) -> list[CompiledStep]:
    """Bisects the numbers of microbatches that the mesh allows, starting from the given one."""
    config = given.program.config
    rows = config.batch.size // given.row_shards
    choices = [size for size in range(1, rows + 1) if rows % size == 0]  # rows per device
    steps: list[CompiledStep] = []
    start = choices.index(given.rows_per_device)
    fits, too_large = (start, len(choices)) if given.fits else (-1, start)
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        num_microbatches = rows // choices[middle]
        batch = config.batch.model_copy(update={"num_microbatches": num_microbatches})
        steps.append(compile_config(config.model_copy(update={"batch": batch})))
        fits, too_large = (middle, too_large) if steps[-1].fits else (fits, middle)
    return steps


def bytes_per_device(arrays: Any) -> int:
    """Bytes of one device's part of a tree of ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(arrays)
    )
