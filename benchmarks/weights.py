"""Measures a host's memory beside the weights while it loads and exports a model of many files.

    python benchmarks/weights.py --layers 5 --folder /tmp/big

Writes layers of Llama-2-13B's shape with random bits as bfloat16, in files of 1 GB, loads them
under fsdp over eight CPU devices, and exports them again. CPU devices hold their shards in the same
memory. `beside` is the process's largest memory, without mapped files and sampled every 2 ms, minus
its memory before and the float32 weights that remain at the end.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

LLAMA_2_13B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
GB = 1e9


def synthesise(folder: Path, layers: int) -> None:
    """Writes config.json and random weights."""
    import ml_dtypes
    import numpy as np
    from gmt_train.files import write_json
    from gmt_train.hf.load import stored_tensors
    from gmt_train.hf.safetensors import INDEX, TensorSpec, write_safetensors
    from gmt_train.model import ModelConfig, abstract_params

    hf = LLAMA_2_13B | {"num_hidden_layers": layers, "dtype": "bfloat16"}
    config = ModelConfig.from_hf(hf, "config.json")
    tensors = stored_tensors(config, abstract_params(config))
    specs = {tensor.name: TensorSpec("BF16", tensor.shape) for tensor in tensors}
    files: list[dict[str, TensorSpec]] = [{}]
    for name, spec in specs.items():
        if sum(other.num_bytes for other in files[-1].values()) + spec.num_bytes > GB:
            files.append({})
        files[-1][name] = spec
    rng = np.random.default_rng(0)

    def read(name: str) -> np.ndarray:
        bits = rng.integers(0, 2**14, specs[name].shape, np.uint16)
        return bits.view(ml_dtypes.bfloat16)

    weight_map = {}
    for number, group in enumerate(files, 1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors"
        print(f"writing {file} …", file=sys.stderr)
        write_safetensors(folder / file, group, read, {"format": "pt"})
        weight_map |= dict.fromkeys(group, file)
    write_json(folder / INDEX, {"weight_map": weight_map})
    write_json(folder / "config.json", hf)


def memory() -> int:
    """Bytes of this process, without mapped files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not report RssAnon; use Linux")


@contextlib.contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Yields a list whose one entry is the context's peak memory, above that before, in bytes."""
    before, peak, stop = memory(), [0], Event()

    def watch() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], memory() - before)

    thread = Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def measure(folder: Path) -> list[dict[str, float]]:
    """The table's rows: loading and exporting."""
    import jax
    from gmt_train.hf.load import load_params
    from gmt_train.hf.save import save_params
    from gmt_train.model import abstract_params, load_model_config, logical_axes
    from gmt_train.sharding import make_mesh, param_shardings

    config = load_model_config(folder)
    shapes = abstract_params(config)
    shardings = param_shardings(make_mesh(), shapes, logical_axes(config))
    jax.block_until_ready(jax.jit(lambda: 0.0)())
    print("loading …", file=sys.stderr)
    started = time.perf_counter()
    with peak_memory() as peak:
        params = jax.block_until_ready(load_params(folder, config, shardings))
    seconds = time.perf_counter() - started
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    rows = [{"weights": weights, "beside": peak[0] - weights, "seconds": seconds}]
    print("exporting …", file=sys.stderr)
    (folder / "export").mkdir()
    started = time.perf_counter()
    with peak_memory() as peak:
        save_params(params, config, folder / "export", "bfloat16", max_file_bytes=10**9)
    seconds = time.perf_counter() - started
    return [*rows, {"weights": weights, "beside": peak[0], "seconds": seconds}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument(
        "--folder", type=Path, required=True, help="is created, and removed at the end"
    )
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.folder)))
        return
    args.folder.mkdir(parents=True)
    try:
        synthesise(args.folder, args.layers)
        size = sum(file.stat().st_size for file in args.folder.glob("*.safetensors"))
        count = len(list(args.folder.glob("*.safetensors")))
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(args.devices),
            "NPROC": "32",
        }
        command = [sys.executable, __file__, "--measure", "--folder", str(args.folder)]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
        rows = json.loads(done.stdout)
    finally:
        shutil.rmtree(args.folder)
    print(f"{count} files, {size / GB:.2f} GB; {args.devices} devices; {platform.platform()}")
    largest = LLAMA_2_13B["vocab_size"] * LLAMA_2_13B["hidden_size"] * 2
    print(f"largest tensor {largest / GB:.3f} GB in bfloat16\n")
    print("| | weights, GB | beside, GB | seconds |\n|---|---|---|---|")
    for name, row in zip(("load", "export"), rows, strict=True):
        weights, beside = row["weights"] / GB, row["beside"] / GB
        print(f"| {name} | {weights:.2f} | {beside:.3f} | {row['seconds']:.1f} |")


if __name__ == "__main__":
    main()
