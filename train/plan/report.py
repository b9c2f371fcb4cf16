"""The tables of a plan, and what to change where it does not fit."""

import math
from collections import Counter

import jax
from rich.console import Console
from rich.table import Table

from ..flops import find_chip, flops_per_token
from .hlo import COLLECTIVES, Collective
from .plan import CompiledStep, StepPlan


def describe(made: CompiledStep) -> str:
    """One line on one compilation."""
    needs = "too much" if made.needs is None else size(made.needs)
    verdict = "" if made.fits is None else ", fits" if made.fits else ", does not fit"
    return (
        f"mask {_kind(made)}, {_pieces(made)}: {needs} a device{verdict} "
        f"(compiled in {made.seconds:.0f} s)"
    )


def size(count: float) -> str:
    """`1.5 GiB`: bytes in the largest unit that leaves at least one."""
    power = min(int(math.log(abs(count), 1024)), 4) if abs(count) >= 1 else 0
    unit = ("B", "KiB", "MiB", "GiB", "TiB")[power]
    return f"{count / 1024**power:,.{2 if power else 0}f} {unit}"


def print_plan(plan: StepPlan, console: Console) -> None:
    """Memory, network and work of a step, with and without its mask."""
    made = plan.given
    config, mesh = made.program.config, made.program.mesh
    axes = ", ".join(f"{axis} {ways}" for axis, ways in mesh.shape.items())
    lines = [
        f"{config.model.path}: {_num_parameters(made):,} parameters",
        f"{mesh.size} devices, {mesh.devices.flat[0].device_kind}: {axes}",
        f"{config.batch.size} rows of {config.data.max_length} tokens an update, {_pieces(made)}",
    ]
    console.print("\n" + "\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    tables = [_memory(plan)] if made.needs is not None else []
    if made.cost is not None:
        tables += [_network(plan), _work(plan)]
    for table in tables:
        console.print()
        console.print(table)
    if plan.searched and (best := plan.largest):
        console.print(f"\nthe largest microbatch that fits: {_pieces(best)}", highlight=False)


def advice(plan: StepPlan) -> str:
    """Why the step does not fit, and what to change."""
    made, limit = plan.given, plan.limit or 0
    mesh, config = made.program.mesh, made.program.config
    wants = "more" if made.needs is None else size(made.needs)
    start = f"the step needs {wants} a device of {size(limit)}; "
    if best := plan.largest:
        return start + f"set batch.num_microbatches={best.num_microbatches}, which fits"
    split = mesh.size // mesh.shape["data"]
    others = max((made.needs or 0) - made.fixed, 0)
    more = (
        f"split weights, optimizer state and gradients, {size(made.fixed)} of it, more than the "
        f"{split} ways that they are: over more devices along mesh.fsdp"
        + (", or those along mesh.data" if mesh.shape["data"] > 1 else "")
    )
    if others < limit:
        more += f" ({math.ceil(split * made.fixed / (limit - others))} ways or more in all)"
    if made.fixed > limit:
        return start + more
    changes = []
    if made.rows > 1:
        changes.append("raise batch.num_microbatches")
    if config.model.remat != "offload":
        less = "offload" if config.model.remat == "full" else "full"
        changes.append(f"set model.remat={less}")
    if config.optimizer.mu_dtype == "float32":
        saved = size(made.kept["parameters"] / 2)
        changes.append(f"set optimizer.mu_dtype=bfloat16, which saves {saved}")
    changes += ["shorten data.max_length", "split rows over mesh.context or mesh.tensor", more]
    return start + "; or ".join(changes)


def _kind(made: CompiledStep) -> str:
    return made.program.config.optimizer.mask.kind


def _pieces(made: CompiledStep) -> str:
    times = (
        "1 microbatch" if made.num_microbatches == 1 else f"{made.num_microbatches} microbatches"
    )
    return f"{times} of {made.rows} row{'s' if made.rows > 1 else ''} a device"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    table.add_column(no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _memory(plan: StepPlan) -> Table:
    both = [plan.given] if plan.plain is None else [plan.given, plan.plain]
    names = [f"mask {_kind(made)}" for made in both]
    table = _table("memory of a device", *names, *["the mask adds"] * (len(both) - 1))
    rows = [made.kept | _temporary(made) for made in both]
    for name in rows[0]:
        sizes = [row[name] for row in rows]
        added = [size(sizes[0] - sizes[1])] if len(sizes) > 1 else []
        table.add_row(name, *map(size, sizes), *added)
    if plan.limit is not None:
        table.add_row("of its", size(plan.limit), style="bold" if plan.given.fits else "bold red")
    return table


def _temporary(made: CompiledStep) -> dict[str, int]:
    """Bytes beside those kept; the gradients are from their shapes, the rest is what is left."""
    needs = made.needs or 0
    temporary = needs - sum(made.kept.values())
    gradients = min(made.gradients, temporary)
    return {
        "gradients, from shapes": gradients,
        "activations and the rest": temporary - gradients,
        "at the fullest moment": needs,
    }


def _network(plan: StepPlan) -> Table:
    """All collectives of a step; then those that the mask adds."""
    table = _table("network of a device, a step", "times", "it sends", "the largest")

    def add(times: Counter[Collective], what: str) -> None:
        for kind in COLLECTIVES:
            found = {each: n for each, n in times.items() if each.kind == kind and n}
            if found:
                sent = sum(n * each.sent for each, n in found.items())
                largest = max(each.size for each in found)
                table.add_row(kind + what, f"{sum(found.values()):,}", size(sent), size(largest))

    given = plan.given.cost
    assert given is not None
    add(given.step.times, "")
    for work in given.rounds:
        add(work.times, ", each pass of a search")
    if plan.plain is not None and plan.plain.cost is not None:
        add(given.step.times - plan.plain.cost.step.times, ", of the mask")
    return table


def _work(plan: StepPlan) -> Table:
    made = plan.given
    table = _table("work of a device, a step", "")
    config = made.program.config
    length = config.data.max_length
    tokens = config.batch.size * length / made.program.mesh.size
    flops = tokens * flops_per_token(made.program.model, length)
    table.add_row("arithmetic of the model", f"{flops / 1e12:,.3f} TFLOP")
    chip = find_chip(made.program.mesh.devices.flat[0].device_kind)
    if chip is not None:
        table.add_row("… at the chip's peak", f"{flops / chip.bf16_flops:,.3f} s")
    assert made.cost is not None
    cycles = made.cost.step.cycles
    if cycles:
        table.add_row("kernels, as the compiler estimates", f"{cycles / 1e6:,.1f} Mcycles")
        if plan.plain is not None and plan.plain.cost is not None:
            added = cycles - plan.plain.cost.step.cycles
            table.add_row("… of the mask", f"{added / 1e6:,.1f} Mcycles")
        for work in made.cost.rounds:
            table.add_row("… each pass of a search", f"{work.cycles / 1e6:,.1f} Mcycles")
    return table


def _num_parameters(made: CompiledStep) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(made.program.abstract_state().params))
