"""A training step of a real model, beside transformers on PyTorch and without the mask.

    python benchmarks/step.py --model models/SmolLM2-135M-Instruct
    python benchmarks/step.py --model models/SmolLM2-135M-Instruct --batch 16 --length 2048 \\
        --compute-dtype bfloat16 --attention cudnn --remat none   # on a GPU

Every row is a whole AdamW step on the same tokens: loss, gradients, update; master weights are
float32. Each has a process of its own, so that no row finds another's threads and memory in its
way, and they step in turn, there and back; a row's ratio is the median over the rounds of its ratio
to the first row of the same round, so that a machine which slows down slows all of them. PyTorch's
rows appear where torch is installed; it runs on the GPU if it sees one, under autocast where we
compute in bfloat16, and else has as many threads as there are cores. Ours computes attention again
in the backward pass (remat: dots), which on a CPU is faster than reading it back.
"""

import argparse
import gc
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from gmt_train.flops import peak_tokens_per_s
from gmt_train.hf.load import load_params
from gmt_train.model import (
    ComputeOptions,
    abstract_params,
    load_model_config,
    logical_axes,
    stacked_axes,
)
from gmt_train.objective.preference import Preference
from gmt_train.objective.preference_losses import dpo
from gmt_train.objective.sft import Sft
from gmt_train.sharding import make_mesh, microbatch_sharding, param_shardings
from gmt_train.step import Objective, TrainState, jit_train_step, state_shardings
from jax.sharding import Mesh
from tokens import rows_of

from gmt_jax import gmt_mask

torch: Any
try:
    import torch
except ImportError:
    torch = None

RATE = 1e-5
Step = Callable[[], float]  # does one step, returns its loss


def ours(
    folder: Path, compute: ComputeOptions, rows: np.ndarray, *first: optax.GradientTransformation
) -> Step:
    """The program's own step, with transformations before AdamW."""
    tokens, targets = rows[None, :, :-1], rows[None, :, 1:]
    batch = {"tokens": tokens, "targets": targets, "weights": np.ones(tokens.shape, np.float32)}
    return stepping(folder, Sft(load_model_config(folder), compute), batch, *first)


def preferring(folder: Path, compute: ComputeOptions, rows: np.ndarray) -> Step:
    """DPO on the same tokens, as pairs of rows."""
    pairs = rows.reshape(1, -1, 2, rows.shape[1])
    tokens, targets = pairs[..., :-1], pairs[..., 1:]
    floats = {name: np.ones(tokens.shape, np.float32) for name in ("weights", "reference")}
    objective = Preference(load_model_config(folder), partial(dpo, beta=0.1), compute)
    return stepping(folder, objective, {"tokens": tokens, "targets": targets, **floats})


def stepping(
    folder: Path,
    objective: Objective,
    batch: dict[str, np.ndarray],
    *first: optax.GradientTransformation,
) -> Step:
    """A step with an objective on a batch [N, B/N, ...]."""
    optimizer = optax.chain(*first, optax.adamw(RATE))
    mesh, held, device_batch, shardings = on_device(folder, optimizer, batch)
    step = jit_train_step(objective, optimizer, mesh, shardings)

    def run() -> float:
        with jax.set_mesh(mesh):
            held[0], metrics = step(held[0], device_batch)
        jax.block_until_ready(held)
        return float(metrics["loss"])

    return run


def on_device(
    folder: Path, optimizer: optax.GradientTransformation, batch: dict[str, np.ndarray]
) -> tuple[Mesh, list[TrainState], Any, TrainState]:
    """One device's mesh, the first state (which a step replaces), the batch, the shardings."""
    config = load_model_config(folder)
    mesh = make_mesh(devices=jax.devices()[:1])
    shapes = abstract_params(config)
    split = param_shardings(mesh, shapes, logical_axes(config))
    shardings = state_shardings(mesh, optimizer, shapes, split)

    params = load_params(folder, config, split)
    state = TrainState(np.int32(0), params, jax.jit(optimizer.init)(params))
    held = [jax.device_put(state, shardings)]
    return mesh, held, jax.device_put(batch, microbatch_sharding(mesh)), shardings


def masked(folder: Path, compute: ComputeOptions, rows: np.ndarray, tolerance: float = 0.0) -> Step:
    """The same with the mask."""
    mask = gmt_mask(0.2, stacked_axes=stacked_axes, tolerance=tolerance)
    return ours(folder, compute, rows, mask)


def theirs(
    folder: Path, compute: ComputeOptions, rows: np.ndarray, fused: bool, compiled: bool
) -> Step:
    """transformers' model and PyTorch's AdamW."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, fused=fused)
    tokens = torch.from_numpy(rows.astype(np.int64)).to(device)
    low = compute.dtype == "bfloat16"

    def loss_of(inputs: Any, targets: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=low):
            scores = model(input_ids=inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(scores.flatten(0, 1).float(), targets.flatten())

    if compiled:
        loss_of = torch.compile(loss_of)

    def run() -> float:
        loss = loss_of(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return float(loss.detach())

    return run


def serve(pipe: Connection, make: Callable[..., Step], *given: Any) -> None:
    """In a process of its own: makes a step, then does and times one whenever it is asked to."""
    step = make(*given)
    pipe.send([step() for _ in range(2)])  # The second compiles again where the first donated.
    gc.disable()
    while pipe.recv():
        start = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - start)


def timed(rows: dict[str, tuple[Any, ...]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each row's step in each round, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    processes = multiprocessing.get_context("spawn")
    pipes = {}
    for name, given in rows.items():
        pipes[name], theirs = processes.Pipe()
        processes.Process(target=serve, args=(theirs, *given), daemon=True).start()
        theirs.close()  # So that a process that fails ends this one, too.
        losses = pipes[name].recv()
        print(f"{name}: losses {losses[0]:.5f}, {losses[1]:.5f}", flush=True)
    for at in range(rounds):
        for name in list(rows)[:: 1 if at % 2 else -1]:
            pipes[name].send(True)
            seconds[name].append(pipes[name].recv())
    for pipe in pipes.values():
        pipe.send(False)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a folder")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--compute-dtype", default="float32")
    parser.add_argument("--attention", default="xla", help="xla, cudnn or splash")
    parser.add_argument("--remat", default="dots")
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=bool(torch))
    chosen = parser.parse_args()
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, "
        f"torch {torch.__version__ if torch else 'not installed'}, {os.cpu_count()} cores, "
        f"{platform.machine()}, {platform.system()}"
    )
    compute = ComputeOptions(chosen.compute_dtype, chosen.remat, chosen.attention)
    given = chosen.model, compute, rows_of(chosen.model, chosen.batch, chosen.length)
    rows = {
        "plain fine-tuning": (ours, *given),
        "with gmt_mask": (masked, *given),
        "with gmt_mask, tolerance 0.001": (masked, *given, 1e-3),
        "dpo, on as many tokens": (preferring, *given),
    }
    if chosen.torch:
        rows["transformers on PyTorch"] = (theirs, *given, False, False)
        rows["… with fused AdamW"] = (theirs, *given, True, False)
    if chosen.torch and torch.cuda.is_available():
        rows["… compiled"] = (theirs, *given, True, True)
    seconds = timed(rows, chosen.rounds)
    config, device = load_model_config(chosen.model), jax.devices()[0]
    peak = peak_tokens_per_s(config, chosen.length, device, 1)
    print("\n| | ms | tokens/s | MFU | of plain fine-tuning's time |\n|---|---|---|---|---|")
    first = seconds["plain fine-tuning"]
    for name, times in seconds.items():
        median = statistics.median(times)
        ratio = statistics.median(a / b for a, b in zip(times, first, strict=True))
        speed = chosen.batch * chosen.length / median
        share = f"{speed / peak:.1%}" if peak else ""
        print(f"| {name} | {median * 1e3:,.1f} | {speed:,.0f} | {share} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
