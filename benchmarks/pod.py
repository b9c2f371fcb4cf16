"""What the mask adds to an AdamW update on TPU pods, from programs compiled without a TPU.

    pip install "jax[tpu]"
    python benchmarks/pod.py --topology v5e:4x4 --model llama-2-7b

Compiles the optimizer's update alone, gradients to new parameters and moments, for every topology
and model named (by default all), split over all chips as the program splits it, with float32
master weights. Bytes are those of one device's main memory; the outputs take the place of donated
arguments. A collective's bytes are those of all its operands. Cycles are the compiler's own
estimate of its kernels, without the network: those that run once, and those of one pass of the
search, of which there are about six.
"""

import argparse
import os
import platform
import re
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # To compile each time anew.

import jax
import optax
from gmt_train.model import abstract_params, load_model_config, logical_axes, stacked_axes
from gmt_train.plan.hlo import estimated_cycles, find_collectives, split_computations
from gmt_train.plan.topology import slice_devices
from gmt_train.sharding import make_mesh, param_shardings
from gmt_train.step import state_shardings

from gmt_jax import gmt_mask

TOPOLOGIES = ("v5e:4x4", "v5e:16x16", "v5p:8x8x8")
FOLDER = Path(__file__).parents[1] / "configs" / "models"
MODELS = ("llama-2-7b", "llama-2-13b", "llama-3-8b", "llama-3-70b")
OPTIMIZERS = {
    "adamw": optax.adamw(1e-5),
    "with gmt": optax.chain(gmt_mask(0.2, stacked_axes=stacked_axes), optax.adamw(1e-5)),
}


class Program(NamedTuple):
    """What the compiler says of one program, on one device."""

    arguments: int  # bytes
    outputs: int  # bytes, nearly all in the place of donated arguments
    needs: int  # bytes at the fullest moment, arguments included
    seconds: float  # to compile
    cycles: int  # of what runs once
    cycles_a_pass: int  # of the search
    collectives: dict[str, tuple[int, int]]  # kind: how many, bytes of the largest


def compile_update(topology: str, model: str, optimizer: Any) -> Program:
    """The update of one model for one topology, with parameters and state donated."""
    mesh = make_mesh(devices=slice_devices(topology))
    config = load_model_config(FOLDER / model)
    shapes = abstract_params(config)
    shardings = param_shardings(mesh, shapes, logical_axes(config))
    split = state_shardings(mesh, optimizer, shapes, shardings)

    def update(params: Any, opt_state: Any, grads: Any) -> Any:
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    with jax.set_mesh(mesh):
        jitted = jax.jit(
            update,
            in_shardings=(shardings, split.opt_state, shardings),
            out_shardings=(shardings, split.opt_state),
            donate_argnums=(0, 1),
        )
        lowered = jitted.lower(shapes, jax.eval_shape(optimizer.init, shapes), shapes)
        start = time.perf_counter()
        compiled = lowered.compile()
        seconds = time.perf_counter() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    return Program(
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.peak_memory_in_bytes,
        seconds,
        *cycles_once_and_per_pass(text),
        largest_collectives(text),
    )


def cycles_once_and_per_pass(text: str) -> tuple[int, int]:
    """Cycles of the kernels that run once, and of those in one round of the longest loop."""
    bodies = split_computations(text)
    loops = re.findall(r" while\(.*?body=(%[\w.-]+)", text)
    rounds = (estimated_cycles(bodies[loop]) for loop in loops)
    return estimated_cycles(bodies["ENTRY"]), max(rounds, default=0)


def largest_collectives(text: str) -> dict[str, tuple[int, int]]:
    """Of every kind, how many there are and the bytes of the largest, all its operands summed."""
    found: dict[str, tuple[int, int]] = {}
    for each in find_collectives(text):
        count, largest = found.get(each.kind, (0, 0))
        found[each.kind] = count + 1, max(largest, each.size)
    return found


def cells(program: Program) -> list[str]:
    """The program's part of a row of the table."""
    sizes = (program.arguments, program.outputs, program.needs)
    said = [f"{n} {kind}, {size:,} B" for kind, (n, size) in program.collectives.items()]
    return [
        *(f"{size / 1e6:,.2f}" for size in sizes),
        f"{program.seconds:.1f}",
        *(f"{cycles / 1e6:.3f}" for cycles in (program.cycles, program.cycles_a_pass)),
        "; ".join(said) or "none",
    ]


def difference(plain: Program, masked: Program) -> Program:
    """What the mask adds; the collectives are all its own."""
    numbers = (b - a for a, b in zip(plain[:-1], masked[:-1], strict=True))
    return Program(*numbers, collectives=masked.collectives)


def print_pair(topology: str, model: str) -> None:
    """Three rows of the table: the update without and with the mask, and what it adds."""
    try:
        programs = {name: compile_update(topology, model, o) for name, o in OPTIMIZERS.items()}
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"| {topology} | {model} | does not fit |" + " |" * 7, flush=True)
        return
    programs["difference"] = difference(*programs.values())
    for name, program in programs.items():
        print(f"| {topology} | {model} | {name} | {' | '.join(cells(program))} |", flush=True)


def main() -> None:
    """Prints a table: three rows for each topology and model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", nargs="+", default=TOPOLOGIES, metavar="NAME")
    parser.add_argument("--model", nargs="+", default=MODELS, choices=MODELS)
    chosen = parser.parse_args()
    print(
        f"jax {jax.__version__}, libtpu {version('libtpu')}, compiled on {os.cpu_count()} cores, "
        f"{platform.machine()}, {platform.system()}\n"
    )
    print(
        "| topology | model | update | arguments, MB | outputs, MB | fullest, MB | compile, s "
        "| Mcycles | Mcycles a pass | collectives |"
    )
    print("|---" * 10 + "|")
    for topology in chosen.topology:
        for model in chosen.model:
            print_pair(topology, model)


if __name__ == "__main__":
    main()
