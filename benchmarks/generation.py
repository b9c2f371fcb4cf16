"""Tokens per second of greedy completions: one prompt at a time, and in batches.

python benchmarks/generation.py models/SmolLM2-135M-Instruct [--torch]
"""

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from gmt_train.generate import Sampling, generate
from gmt_train.model import unstack
from gmt_train.model.layers import few_rows
from gmt_train.restore import Model

TOPICS = [
    "rivers", "the moon", "old bridges", "sailing", "a letter", "winter", "bread", "glass",
    "a chess game", "trains", "honey", "maps", "clocks", "a market", "lighthouses", "violins",
]  # fmt: skip
NEVER = [-1]  # A stop token that never comes, so that all completions have the same length.
Tokens = list[list[int]]


def main() -> None:
    """Prints a table with a row for each way of completing the same prompts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--new", type=int, default=128, help="new tokens of each prompt")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--torch", action="store_true", help="transformers on PyTorch as well")
    args = parser.parse_args()
    model = Model(args.model)
    prompts = [model.prompt_ids(f"Write a short story about {topic}.") for topic in TOPICS]
    params = model.params()

    def ours(prompts: Tokens, batch_size: int) -> Tokens:
        sampling = Sampling(args.new)
        return generate(model.config, params, prompts, sampling, NEVER, batch_size=batch_size)

    ways: dict[str, Callable[[], Tokens]] = {
        "one prompt at a time": lambda: ours(prompts, 1),
        "… in a call for each": lambda: [ours([prompt], 1)[0] for prompt in prompts],
        "16 prompts together": lambda: ours(prompts, 16),
    }
    if args.torch:
        ways["transformers on PyTorch, 16 together"] = _transformers(model, prompts, args.new)
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {platform.machine()}; ", end=""
    )
    print(f"{len(prompts)} prompts, {args.new} new tokens each, {args.rounds} rounds")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = {name: complete() for name, complete in ways.items()}  # Compiled here.
    for _ in range(args.rounds):
        for name, complete in ways.items():
            begin = time.perf_counter()
            complete()
            seconds[name].append(time.perf_counter() - begin)
    first = next(iter(results))
    print("\n| | tokens/s | of one at a time | equal completions |\n|---|---|---|---|")
    for name, times in seconds.items():
        rate = len(prompts) * args.new / statistics.median(times)
        ratio = statistics.median(seconds[first]) / statistics.median(times)
        equal = sum(a == b for a, b in zip(results[name], results[first], strict=True))
        print(f"| {name} | {rate:,.0f} | {ratio:.1f} | {equal} of {len(prompts)} |")
    _print_products(params, len(prompts), args.rounds)


def _print_products(params: Any, num_rows: int, rounds: int) -> None:
    """The products of one token's pass with all matrices, for one row and for several."""
    matrices = [w for w in jax.tree.leaves(jax.jit(unstack)(params["layers"])) if w.ndim == 2]
    matrices.append(params.get("head", params["embed"]))

    @jax.jit
    def multiply(x: jax.Array) -> list[jax.Array]:
        return [few_rows(x[:, : w.shape[1]], w, x.dtype) for w in matrices]

    widest = max(w.shape[1] for w in matrices)
    inputs = {n: jnp.ones((n, widest), jnp.float32) for n in (1, num_rows)}
    best = dict.fromkeys(inputs, math.inf)
    for _ in range(10 * rounds):  # The first of them compile.
        for n, x in inputs.items():
            begin = time.perf_counter()
            jax.block_until_ready(multiply(x))
            best[n] = min(best[n], time.perf_counter() - begin)
    one, all_rows = (1e3 * seconds for seconds in best.values())
    print(
        f"\nproducts with all matrices: {one:.1f} ms for 1 row, {all_rows:.1f} for {num_rows}, "
        f"{all_rows / one:.2f} times: {num_rows * one / all_rows:.1f} times the rows a second"
    )


def _transformers(model: Model, prompts: Tokens, num_new: int) -> Callable[[], Tokens]:
    import torch
    from transformers import AutoModelForCausalLM

    network: Any = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    network.generation_config.eos_token_id = None
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    def complete() -> Tokens:
        with torch.inference_mode():
            out = network.generate(
                ids, attention_mask=mask, max_new_tokens=num_new, do_sample=False, pad_token_id=0
            )
        new: Tokens = out[:, width:].tolist()
        return new

    return complete


if __name__ == "__main__":
    main()
