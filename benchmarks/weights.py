"""What a host holds beside the weights while it loads and exports a checkpoint of many shards.

    python benchmarks/weights.py --layers 5 --folder /tmp/big

Writes layers of Llama-2-13B's shape with random bits as bfloat16, in files of 1 GB, loads them
under fsdp over eight CPU devices, and exports them again. CPU devices hold their shards in the same
memory: `beside` is the most that the process held, without mapped files and looked at every 2 ms,
above what it held before and the float32 weights that are there in the end.
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
    """Writes config.json and the weights."""
    import ml_dtypes
    import numpy as np

    from train.hf.load import INDEX, wanted_tensors
    from train.hf.safetensors import Layout, write_safetensors
    from train.model import ModelConfig, abstract_params

    hf = LLAMA_2_13B | {"num_hidden_layers": layers, "dtype": "bfloat16"}
    config = ModelConfig.from_hf(hf, "config.json")
    wanted = wanted_tensors(config, abstract_params(config))
    files: list[dict[str, Layout]] = [{}]
    for name, shape in wanted.items():
        layout = Layout("BF16", shape)
        if sum(each.bytes for each in files[-1].values()) + layout.bytes > GB:
            files.append({})
        files[-1][name] = layout
    draw = np.random.default_rng(0)

    def read(name: str) -> np.ndarray:
        bits = draw.integers(0, 2**14, wanted[name], np.uint16)
        return bits.view(ml_dtypes.bfloat16)

    names = [f"model-{at:05}-of-{len(files):05}.safetensors" for at in range(1, len(files) + 1)]
    for file, layouts in zip(names, files, strict=True):
        write_safetensors(folder / file, layouts, read, {"format": "pt"})
    places = {name: file for file, each in zip(names, files, strict=True) for name in each}
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps(hf))


def held() -> int:
    """Bytes that this process holds, mapped files left out."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell RssAnon; use Linux")


@contextlib.contextmanager
def peak() -> Iterator[list[int]]:
    """The most bytes that were held within the context above those before, once it is left."""
    before, found, stop = held(), [0], Event()

    def watch() -> None:
        while not stop.wait(0.002):
            found[0] = max(found[0], held() - before)

    thread = Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def measure(folder: Path) -> list[dict[str, float]]:
    """Rows of the table: loading and exporting."""
    import jax

    from train.hf.load import load_params
    from train.hf.save import save_params
    from train.model import abstract_params, load_model_config, logical_axes
    from train.sharding import make_mesh, param_shardings

    config = load_model_config(folder)
    shapes = abstract_params(config)
    shardings = param_shardings(make_mesh(), shapes, logical_axes(config))
    jax.block_until_ready(jax.jit(lambda: 0.0)())
    started = time.perf_counter()
    with peak() as most:
        params = jax.block_until_ready(load_params(folder, config, shardings))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    loaded = time.perf_counter() - started
    rows = [{"held": weights, "beside": most[0] - weights, "seconds": loaded}]
    out = folder / "export"
    out.mkdir()
    started = time.perf_counter()
    with peak() as most:
        save_params(params, config, out, "bfloat16", max_file_bytes=10**9)
    rows.append(
        {
            "held": weights,
            "beside": most[0],
            "seconds": time.perf_counter() - started,
        }
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--folder", type=Path, required=True, help="made, and removed at the end")
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
        told = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
        rows = json.loads(told.stdout)
    finally:
        shutil.rmtree(args.folder)
    print(f"{count} files, {size / GB:.2f} GB; {args.devices} devices; {platform.platform()}")
    largest = LLAMA_2_13B["vocab_size"] * LLAMA_2_13B["hidden_size"] * 2
    print(f"largest tensor {largest / GB:.3f} GB in bfloat16\n")
    print("| | weights held, GB | beside, GB | seconds |\n|---|---|---|---|")
    for name, row in zip(("load", "export"), rows, strict=True):
        print(
            f"| {name} | {row['held'] / GB:.2f} | {row['beside'] / GB:.3f} | {row['seconds']:.1f} |"
        )


if __name__ == "__main__":
    main()
