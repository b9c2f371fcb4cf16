"""Memory and time of a training step of a real model: plain, under a lasting mask, compact, LoRA.

    python benchmarks/compact.py --model models/SmolLM2-135M-Instruct

Each row is a whole AdamW step of the program on the same tokens, in a process of its own, and all
step in turn. Its memory is what the process holds at most during the steps, beyond what it held
before it read the weights (`VmHWM` of Linux, reset after the first step), or at most since the
beginning on the GPU or TPU, if there is one. The state is what stays between steps; state and
gradient are all that is neither activations nor the program's temporary arrays.
"""

import argparse
import gc
import multiprocessing
import os
import platform
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import numpy as np
from gmt_train.config import load_config
from gmt_train.draw import draw_from
from gmt_train.hf.load import load_params
from gmt_train.model import load_model_config
from gmt_train.program import Program
from gmt_train.sharding import make_mesh, microbatch_sharding
from gmt_train.step import TrainState
from tokens import rows_of

METHODS = {
    "plain": "optimizer.mask={kind: none}",
    "one_off": "optimizer.mask={kind: one_off, mask_ratio: 0.95}",
    "one_off, balanced": "optimizer.mask={kind: one_off, mask_ratio: 0.95, selection: balanced}",
    "one_off, compact": "optimizer.mask={kind: one_off, mask_ratio: 0.95, compact: true}",
    "LoRA of rank 64": "lora={rank: 64, alpha: 64}",
}


def memory(field: str) -> float:
    """Bytes of this process: VmRSS now, VmHWM at most; of its accelerator, if it has one."""
    if held := jax.devices()[0].memory_stats():
        return float(held[{"VmRSS": "bytes_in_use", "VmHWM": "peak_bytes_in_use"}[field]])
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line for line in lines if line.startswith(field)).split()[1])


def serve(
    pipe: Connection, folder: Path, method: str, dtype: str, remat: str, rows: np.ndarray
) -> None:
    """In a process of its own: does and times a step whenever it is asked to."""
    settings = ["run=none", "data.train=none", f"model.path={folder}", method]
    settings += [f"model.compute_dtype={dtype}", f"model.remat={remat}"]
    settings += [f"batch.size={len(rows)}", f"data.max_length={rows.shape[1] - 1}"]
    mesh = make_mesh(devices=jax.devices()[:1])
    program = Program(load_config(None, settings), load_model_config(folder), mesh, 1000)
    jax.block_until_ready(jax.numpy.zeros(()))
    before = memory("VmRSS")
    tokens, targets = rows[None, :, :-1], rows[None, :, 1:]
    batch = {"tokens": tokens, "targets": targets, "weights": np.ones(tokens.shape, np.float32)}
    batch = jax.device_put(batch, microbatch_sharding(mesh))
    with jax.set_mesh(mesh):
        params = load_params(
            folder, program.model, program.weight_shardings, program.abstract_weights
        )
        compact, shardings = program.compact_mask, program.shardings
        start = time.perf_counter()
        if compact is not None:
            params = draw_from(program, params, [batch])
            jax.block_until_ready(params)
        if program.config.lora is not None:
            params = program.add_adapters(params)
        drawn = time.perf_counter() - start
        opt_state = jax.jit(program.optimizer.init, out_shardings=shardings.opt_state)(params)
        state = TrainState(jax.device_put(np.int32(0), shardings.step), params, opt_state)
        trained = params.values if program.has_base else params
        gradient = sum(leaf.nbytes for leaf in jax.tree.leaves(trained))
        del params, trained, opt_state
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        step = program.train_step()

        def run() -> float:
            nonlocal state
            state, metrics = step(state, batch)
            jax.block_until_ready(state)
            return float(metrics["loss"])

        losses = [run() for _ in range(2)]
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        gc.disable()
        pipe.send((losses, size, gradient, drawn))
        while pipe.recv():
            start = time.perf_counter()
            run()
            pipe.send(time.perf_counter() - start)
        pipe.send((memory("VmHWM") - before, memory("VmRSS") - before))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a folder")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--compute-dtype", default="float32")
    parser.add_argument("--remat", default="dots")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, help="default: all; ratios are of the first"
    )
    chosen = parser.parse_args()
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {os.cpu_count()} cores, "
        f"{platform.machine()}, {platform.system()}, {chosen.compute_dtype}"
    )
    rows = rows_of(chosen.model, chosen.batch, chosen.length)
    processes = multiprocessing.get_context("spawn")
    pipes: dict[str, Any] = {}
    firsts: dict[str, Any] = {}
    for name in chosen.methods or METHODS:
        pipes[name], theirs = processes.Pipe()
        given = theirs, chosen.model, METHODS[name], chosen.compute_dtype, chosen.remat, rows
        processes.Process(target=serve, args=given, daemon=True).start()
        firsts[name] = pipes[name].recv()
        losses, _, _, drawn = firsts[name]
        print(
            f"{name}: losses {losses[0]:.5f}, {losses[1]:.5f}, drawn in {drawn:.1f} s", flush=True
        )
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    for at in range(chosen.rounds):
        for name in list(pipes)[:: 1 if at % 2 else -1]:
            pipes[name].send(True)
            seconds[name].append(pipes[name].recv())
    first = next(iter(pipes))
    columns = "state, MB | … and gradient, MB | peak, MB | between steps, MB | s a step"
    print(f"\n| | {columns} | of {first} |")
    print("|---|---|---|---|---|---|---|")
    for name, pipe in pipes.items():
        pipe.send(False)
        peak, resident = pipe.recv()
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds[first], strict=True))
        _, size, gradient, _ = firsts[name]
        figures = [figure / 1e6 for figure in (size, size + gradient, peak, resident)]
        times = f"{statistics.median(seconds[name]):.2f} | {ratio:.3f}"
        print(f"| {name} | {' | '.join(f'{figure:,.0f}' for figure in figures)} | {times} |")


if __name__ == "__main__":
    main()
