"""Prints a plan, and says what to change if the step does not fit."""

import math
from collections import Counter

import jax
from rich.console import Console
from rich.table import Table

from ..flops import find_chip, flops_per_token
from .hlo import COLLECTIVES, Collective
from .plan import CompiledStep, StepPlan


def summary(step: CompiledStep) -> str:
    """One line on one compilation."""
    needs = "too much" if step.peak_bytes is None else format_bytes(step.peak_bytes)
    verdict = "" if step.fits is None else ", fits" if step.fits else ", does not fit"
    kind = step.program.config.objective.kind
    objective = "" if kind == "sft" else f"{kind}, "
    return (
        f"{objective}{_method(step)}, {_microbatches(step)}: {needs} a device{verdict} "
        f"(compiled in {step.seconds:.0f} s)"
    )


def format_bytes(count: float) -> str:
    """Bytes in the largest unit that leaves at least one.

    >>> format_bytes(1536)
    '1.50 KiB'
    """
    power = min(int(math.log(abs(count), 1024)), 4) if abs(count) >= 1 else 0
    unit = ("B", "KiB", "MiB", "GiB", "TiB")[power]
    return f"{count / 1024**power:,.{2 if power else 0}f} {unit}"


def print_plan(plan: StepPlan, console: Console) -> None:
    """Prints the memory, network and work of a step, with and without its mask."""
    step = plan.given
    config, mesh = step.program.config, step.program.mesh
    axes = ", ".join(f"{axis} {count}" for axis, count in mesh.shape.items())
    rows = f"{config.batch.size} rows of {config.data.max_length} tokens"
    if config.objective.is_preference:
        rows = f"{config.batch.size} pairs of twice {config.data.max_length} tokens"
    lines = [
        f"{config.model.path}: {_num_parameters(step):,} parameters",
        f"{mesh.size} devices, {mesh.devices.flat[0].device_kind}: {axes}",
        f"{rows} an update, {_microbatches(step)}",
    ]
    console.print("\n" + "\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    tables = [_memory(plan)] if step.peak_bytes is not None else []
    if step.cost is not None:
        tables += [_network(plan), _work(plan)]
    if plan.supervised is not None:
        tables.append(_beside_sft(plan.given, plan.supervised))
    for table in tables:
        console.print()
        console.print(table)
    if plan.draw is not None:
        console.print(f"\n{_draw_line(plan.draw)}", highlight=False, soft_wrap=True)
    if plan.searched and (best := plan.largest):
        console.print(f"\nthe largest microbatch that fits: {_microbatches(best)}", highlight=False)


def _draw_line(draw: CompiledStep) -> str:
    """What the mask's draw needs, which is before the first update."""
    needs = "too much" if draw.peak_bytes is None else format_bytes(draw.peak_bytes)
    verdict = "" if draw.fits is None else ", fits" if draw.fits else ", does not fit"
    return f"drawing the mask, before the first update: {needs} a device{verdict}"


def advice(plan: StepPlan) -> str:
    """Why the step does not fit, and what to change."""
    step, limit = plan.given, plan.limit or 0
    config = step.program.config
    needs = "more" if step.peak_bytes is None else format_bytes(step.peak_bytes)
    start = f"the step needs {needs} a device of {format_bytes(limit)}; "
    if best := plan.largest:
        return start + f"set batch.num_microbatches={best.num_microbatches}, which fits"
    if step.fixed_bytes > limit:
        return start + _advice_to_split(step, limit)
    changes = []
    if step.rows_per_device > 1:
        changes.append("raise batch.num_microbatches")
    if config.model.remat != "offload":
        stronger = "offload" if config.model.remat == "full" else "full"
        changes.append(f"set model.remat={stronger}")
    if config.optimizer.name == "adamw" and config.optimizer.mu_dtype != "bfloat16":
        saved = format_bytes(step.resident["parameters"] / 2)
        changes.append(f"set optimizer.mu_dtype=bfloat16, which saves {saved}")
    changes += ["shorten data.max_length", "split rows over mesh.context or mesh.tensor"]
    return start + "; or ".join([*changes, _advice_to_split(step, limit)])


def _advice_to_split(step: CompiledStep, limit: int) -> str:
    """Advice to split the state over more devices, with the number that suffices if it is known."""
    mesh = step.program.mesh
    shards = mesh.size // mesh.shape["data"]
    text = (
        f"split weights, optimizer state and gradients, {format_bytes(step.fixed_bytes)} of it, "
        f"more than the present {shards} ways: over more devices along mesh.fsdp"
    )
    if mesh.shape["data"] > 1:
        text += ", or those along mesh.data"
    others = max((step.peak_bytes or 0) - step.fixed_bytes, 0)
    if others < limit:
        text += f" ({math.ceil(shards * step.fixed_bytes / (limit - others))} ways or more in all)"
    return text


def _method(step: CompiledStep) -> str:
    config = step.program.config
    lora = config.lora
    return f"mask {config.optimizer.mask.kind}" if lora is None else f"lora of rank {lora.rank}"


def _adds(step: CompiledStep) -> str:
    """What the step has beside the one that is compiled without it."""
    return "the mask" if step.program.config.lora is None else "lora"


def _microbatches(step: CompiledStep) -> str:
    number, rows = step.num_microbatches, step.rows_per_device
    return (
        f"{number} microbatch{'es' if number > 1 else ''} "
        f"of {rows} row{'s' if rows > 1 else ''} a device"
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    table.add_column(no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _memory(plan: StepPlan) -> Table:
    steps = [plan.given] if plan.unmasked is None else [plan.given, plan.unmasked]
    names = [_method(step) for step in steps]
    table = _table("memory of a device", *names, *[f"{_adds(plan.given)} adds"] * (len(steps) - 1))
    rows = [step.resident | _temporary(step) for step in steps]
    for name in rows[0]:
        sizes = [row[name] for row in rows]
        added = [format_bytes(sizes[0] - sizes[1])] if len(sizes) > 1 else []
        table.add_row(name, *map(format_bytes, sizes), *added)
    if plan.limit is not None:
        style = "bold" if plan.given.fits else "bold red"
        table.add_row("available", format_bytes(plan.limit), style=style)
    return table


def _temporary(step: CompiledStep) -> dict[str, int]:
    """Bytes beside the resident ones: gradients, computed from their shapes, and the rest."""
    peak = step.peak_bytes or 0
    temporary = peak - sum(step.resident.values())
    gradients = min(step.gradient_bytes, temporary)
    return {
        "gradients, from shapes": gradients,
        "activations and the rest": temporary - gradients,
        "at the fullest moment": peak,
    }


def _network(plan: StepPlan) -> Table:
    """All collectives of a step, then those that the mask adds."""
    table = _table("network of a device, a step", "times", "it sends", "the largest")

    def add(counts: Counter[Collective], suffix: str) -> None:
        for kind in COLLECTIVES:
            same_kind = {op: count for op, count in counts.items() if op.kind == kind and count}
            if same_kind:
                times = f"{sum(same_kind.values()):,}"
                sent = sum(count * op.sent for op, count in same_kind.items())
                largest = max(op.size for op in same_kind)
                table.add_row(kind + suffix, times, format_bytes(sent), format_bytes(largest))

    cost = plan.given.cost
    assert cost is not None
    add(cost.step.collectives, "")
    for search_pass in cost.passes:
        add(search_pass.collectives, ", each pass of a search")
    if plan.unmasked is not None and plan.unmasked.cost is not None:
        add(
            cost.step.collectives - plan.unmasked.cost.step.collectives, f", of {_adds(plan.given)}"
        )
    return table


def _work(plan: StepPlan) -> Table:
    step = plan.given
    table = _table("work of a device, a step", "")
    config, mesh = step.program.config, step.program.mesh
    length = config.data.max_length
    sides = 2 if config.objective.is_preference else 1
    tokens = sides * config.batch.size * length / mesh.size
    flops = tokens * flops_per_token(step.program.model, length)
    table.add_row("arithmetic of the model", f"{flops / 1e12:,.3f} TFLOP")
    chip = find_chip(mesh.devices.flat[0].device_kind)
    if chip is not None:
        table.add_row("… at the chip's peak", f"{flops / chip.bf16_flops:,.3f} s")
    assert step.cost is not None
    cycles = step.cost.step.cycles
    if cycles:
        table.add_row("kernels, as the compiler estimates", f"{cycles / 1e6:,.1f} Mcycles")
        if plan.unmasked is not None and plan.unmasked.cost is not None:
            added = cycles - plan.unmasked.cost.step.cycles
            table.add_row(f"… of {_adds(step)}", f"{added / 1e6:,.1f} Mcycles")
        for search_pass in step.cost.passes:
            table.add_row("… each pass of a search", f"{search_pass.cycles / 1e6:,.1f} Mcycles")
    return table


def _beside_sft(step: CompiledStep, supervised: CompiledStep) -> Table:
    """What learning from preferences needs, and supervised fine-tuning on as many tokens."""
    kind = step.program.config.objective.kind
    table = _table("a device, beside sft on as many tokens", kind, "sft", f"{kind} adds")
    peaks = [each.peak_bytes for each in (step, supervised)]
    if None not in peaks:
        ours, theirs = (peak or 0 for peak in peaks)
        added = format_bytes(ours - theirs)
        table.add_row("memory at the fullest moment", *map(format_bytes, (ours, theirs)), added)
    batches = [each.resident["batch"] for each in (step, supervised)]
    added = format_bytes(batches[0] - batches[1])
    table.add_row("of that, the batch", *map(format_bytes, batches), added)
    costs = [each.cost.step for each in (step, supervised) if each.cost is not None]
    if len(costs) == 2 and costs[1].cycles:
        cycles = [f"{cost.cycles / 1e6:,.1f} Mcycles" for cost in costs]
        added = f"{costs[0].cycles / costs[1].cycles - 1:+.1%}"
        table.add_row("kernels, as the compiler estimates", *cycles, added)
    return table


def _num_parameters(step: CompiledStep) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(step.program.abstract_weights))
