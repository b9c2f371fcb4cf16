"""What a config's train step needs of its devices: compiled, without weights or data."""

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
from ..flops import find_chip
from ..hf.hub import resolve_model
from ..model import load_model_config
from ..program import Program
from ..sharding import check_rows, make_mesh
from .hlo import ProgramCost, program_cost
from .topology import slice_devices

STEPS = 1000  # Where the data would say how many: of schedules alone, and not of what they cost.


@dataclass(frozen=True)
class CompiledStep:
    """A train step as compiled, or that it was too large to be; bytes are those of one device."""

    program: Program
    needs: int | None  # bytes at the fullest moment; None where the compiler does not say
    fits: bool | None  # None where it is not known what a device has
    program_cost: ProgramCost | None  # None where it was not compiled
    seconds: float

    @property
    def ways(self) -> int:
        """In how many parts the rows of a microbatch are split."""
        mesh = self.program.mesh
        return int(mesh.shape["data"] * mesh.shape["fsdp"])

    @property
    def num_microbatches(self) -> int:
        """Of an update."""
        return self.program.config.batch.num_microbatches

    @property
    def rows(self) -> int:
        """Of a microbatch, on a device."""
        return self.program.config.batch.size // self.num_microbatches // self.ways

    @cached_property
    def kept(self) -> dict[str, int]:
        """Bytes that lie on a device between updates, by what they are."""
        state = self.program.abstract_state()
        return {
            "parameters": bytes_a_device(state.params),
            "optimizer state": bytes_a_device(state.opt_state),
            "batch": bytes_a_device(self.program.abstract_batch()),
        }

    @property
    def gradients(self) -> int:
        """Bytes of the gradients, and of their sum over microbatches where there are several."""
        return self.kept["parameters"] * (1 if self.num_microbatches == 1 else 2)

    @property
    def fixed(self) -> int:
        """Bytes that no smaller microbatch saves."""
        return sum(self.kept.values()) + self.gradients


@dataclass(frozen=True)
class StepPlan:
    """All that `plan` finds out."""

    given: CompiledStep
    plain: CompiledStep | None  # the same without its mask, where it has one
    searched: tuple[CompiledStep, ...]  # the same with other microbatches
    limit: int | None  # bytes that a device has; None where that is not known

    @property
    def largest(self) -> CompiledStep | None:
        """The largest microbatch that fits, of those compiled."""
        fitting = [each for each in (self.given, *self.searched) if each.fits]
        return max(fitting, key=lambda each: each.rows, default=None)


def plan_step(
    config: Config,
    topology: str | None,
    *,
    slices: int = 1,
    plain: bool,
    explore: bool,
    say: Callable[[CompiledStep], None],
) -> StepPlan:
    """Compiles the config's step for the devices here or for a TPU slice.

    Args:
      slices: how many of them, joined by the network between slices.
      plain: compile it without its mask too.
      explore: compile other microbatches too, until the largest that fits is known.
      say: called with each as it is compiled, which may take minutes.

    Raises:
      UserError: where model, mesh and batch do not go together, or there is no such slice.
    """
    devices = slice_devices(topology, slices) if topology else jax.devices()
    mesh = make_mesh(**config.mesh.model_dump(), devices=devices)
    rows = config.batch.size // config.batch.num_microbatches
    check_rows(mesh, rows, config.data.max_length)
    folder = resolve_model(config.model.path, config.model.revision, ["config.json"])
    model = load_model_config(folder)
    limit = _memory(devices[0])

    def compiled(config: Config) -> CompiledStep:
        made = _compile(Program(config, model, mesh, config.steps or STEPS), limit)
        say(made)
        return made

    with _uncached() if topology else nullcontext():
        given = compiled(config)
        masked = config.optimizer.mask.kind != "none"
        without = compiled(_unmasked(config)) if plain and masked and given.cost else None
        hopeful = limit is not None and given.fixed < limit
        searched = search(given, compiled) if explore and hopeful else []
    return StepPlan(given, without, tuple(searched), limit)


def _unmasked(config: Config) -> Config:
    optimizer = config.optimizer.model_copy(update={"mask": NoMask(kind="none")})
    return config.model_copy(update={"optimizer": optimizer})


@contextmanager
def _uncached() -> Iterator[None]:
    """Keeps programs out of jax's cache: those for a slice cannot be read back from it."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _memory(device: jax.Device) -> int | None:
    """Bytes of a device: those that jax may use where it is here, else those of its kind."""
    if device in jax.local_devices() and (here := device.memory_stats()):
        return int(here["bytes_limit"])
    chip = find_chip(device.device_kind)
    return chip.memory if chip else None


def _compile(program: Program, limit: int | None) -> CompiledStep:
    shapes = program.abstract_state(), program.abstract_batch()
    start = time.perf_counter()
    with jax.set_mesh(program.mesh):
        lowered = program.train_step().lower(*shapes)
        try:
            made = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            seconds = time.perf_counter() - start
            return CompiledStep(program, bytes_wanted(str(error)), False, None, seconds)
    seconds = time.perf_counter() - start
    memory = made.memory_analysis()
    if program.mesh.devices.flat[0].platform == "tpu":
        # There, temporary sizes add up to more than what the program is given.
        needs = memory.peak_memory_in_bytes
    else:
        needs = memory.argument_size_in_bytes + memory.output_size_in_bytes
        needs += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    fits = None if limit is None else needs <= limit
    return CompiledStep(program, needs, fits, program_cost(made.as_text()), seconds)


def bytes_wanted(message: str) -> int | None:
    """What a compiler that gave up says it would have needed.

    >>> bytes_wanted("total memory required (19.50G) exceeds available HBM (15.75G)")
    20937965568
    """
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds available", message)
    return round(float(found[1]) * 1024 ** (1 + "KMGT".index(found[2]))) if found else None


def search(given: CompiledStep, compiled: Callable[[Config], CompiledStep]) -> list[CompiledStep]:
    """Bisects the numbers of microbatches that the mesh allows, from the given one."""
    config = given.program.config
    rows = config.batch.size // given.ways
    choices = [each for each in range(1, rows + 1) if rows % each == 0]  # rows on a device
    made: list[CompiledStep] = []
    at = choices.index(given.rows)
    fits, too_large = (at, len(choices)) if given.fits else (-1, at)
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        pieces = rows // choices[middle]
        batch = config.batch.model_copy(update={"num_microbatches": pieces})
        made.append(compiled(config.model_copy(update={"batch": batch})))
        fits, too_large = (middle, too_large) if made[-1].fits else (fits, middle)
    return made


def bytes_a_device(described: Any) -> int:
    """Of one device's part of arrays, from their shapes and shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(described)
    )
