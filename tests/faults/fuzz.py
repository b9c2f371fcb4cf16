"""Inputs for the parsers that are the project's own, mutated towards code not reached before.

    make fuzz FUZZ_SECONDS=600

A parser may answer, or refuse in words. Any other exception, ten seconds without an end, and 2 GiB
of memory end its turn, and the input is kept in build/fuzz/.
"""

import argparse
import contextlib
import io
import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import atheris

# It prints a line for each module.
quiet = contextlib.redirect_stderr(io.StringIO())
with quiet, atheris.instrument_imports(include=["train", "gmt_jax", "gguf"]):
    import numpy as np
    from gguf import GGUFWriter
    from safetensors.numpy import save

    from gmt_jax.delta import decode_positions, encode_positions
    from train.config import load_config
    from train.data.jsonl import JsonListSource, JsonlSource, read_json_list
    from train.errors import UserError
    from train.hf.delta import describe, extract
    from train.hf.gguf.reader import dequantized, open_gguf, read_metadata
    from train.hf.safetensors import open_weights
    from train.manifest import DamagedError, read_manifest, write_manifest

ROOT = Path(__file__).parents[2]
FOUND = ROOT / "build" / "fuzz"


class Parser(NamedTuple):
    """A parser: inputs to begin with, and what reads one, in a folder of its own."""

    seeds: Callable[[Path], list[bytes]]
    read: Callable[[bytes, Path], object]


def _read_gguf(data: bytes, folder: Path) -> None:
    file = _put(folder / "model.gguf", data)
    reader = open_gguf(file)
    read_metadata(file, reader)
    for tensor in reader.tensors:
        dequantized(file, tensor)


def _gguf_seeds(folder: Path) -> list[bytes]:
    writer = GGUFWriter(folder / "seed.gguf", "llama")
    writer.add_context_length(128)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_tensor("token_embd.weight", np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [(folder / "seed.gguf").read_bytes()]


def _read_safetensors(data: bytes, folder: Path) -> None:
    _put(folder / "model.safetensors", data)
    with open_weights(folder) as reader:
        for name in reader.names:
            reader.spec(name)


def _read_index(data: bytes, folder: Path) -> None:
    _put(folder / "model-1.safetensors", save({"a": np.ones(2, np.float32)}))
    _put(folder / "model.safetensors.index.json", data)
    with open_weights(folder):
        pass


def _read_positions(data: bytes, folder: Path) -> None:
    del folder
    if len(data) < 4:
        return
    count, size = struct.unpack("<HH", data[:4])
    try:
        found = decode_positions(np.frombuffer(data[4:], np.uint8), count, size)
    except ValueError:
        return
    assert np.all(np.diff(found) > 0), "positions ascend"
    assert found.size == count
    assert not count or (found[0] >= 0 and found[-1] < size)


def _position_seeds(_: Path) -> list[bytes]:
    given = [np.array([0, 3, 900]), np.arange(40), np.array([], np.int64)]
    return [struct.pack("<HH", p.size, 1000) + encode_positions(p).tobytes() for p in given]


def _delta_seeds(folder: Path) -> list[bytes]:
    for name, value in (("base", 1.0), ("tuned", 2.0)):
        (folder / name).mkdir()
        _put(folder / name / "model.safetensors", save({"a": np.array([0.0, value], np.float32)}))
    extract(folder / "base", folder / "tuned", folder / "delta")
    return [(folder / "delta").read_bytes()]


def _read_lines(data: bytes, folder: Path) -> None:
    source = JsonlSource(_put(folder / "data.jsonl", data))
    for number in range(len(source)):
        source[number]


def _read_list(data: bytes, folder: Path) -> None:
    file = _put(folder / "data.json", data)
    items = read_json_list(file)
    source = JsonListSource(file, items or [])
    for number in range(len(source)):
        source[number]


def _read_manifest(data: bytes, folder: Path) -> None:
    _put(folder / "manifest.json", data)
    read_manifest(folder)


def _manifest_seeds(folder: Path) -> list[bytes]:
    write_manifest(folder, {"step": 1})
    return [(folder / "manifest.json").read_bytes()]


def _put(file: Path, data: bytes) -> Path:
    file.write_bytes(data)
    return file


_INDEX = {"weight_map": {"a": "model-1.safetensors"}, "metadata": {"total_size": 8}}
_RECORD = {"messages": [{"role": "user", "content": "é"}], "n": [1, 2.5, None, True]}
PARSERS = {
    "config": Parser(
        lambda _: [file.read_bytes() for file in sorted((ROOT / "configs").glob("*.yaml"))],
        lambda data, folder: load_config(_put(folder / "config.yaml", data)),
    ),
    "delta": Parser(
        _delta_seeds, lambda data, folder: describe(_put(folder / "tuned.delta", data))
    ),
    "gguf": Parser(_gguf_seeds, _read_gguf),
    "index": Parser(lambda _: [json.dumps(_INDEX).encode()], _read_index),
    "lines": Parser(lambda _: [json.dumps(_RECORD).encode() + b"\n"] * 2, _read_lines),
    "list": Parser(lambda _: [json.dumps([_RECORD]).encode()], _read_list),
    "manifest": Parser(_manifest_seeds, _read_manifest),
    "positions": Parser(_position_seeds, _read_positions),
    "safetensors": Parser(lambda _: [save({"a": np.ones((2, 3), np.float32)})], _read_safetensors),
}


def fuzz(name: str, seconds: int, seed: int) -> None:
    """Feeds one parser; libFuzzer ends the process."""
    parser = PARSERS[name]
    FOUND.mkdir(parents=True, exist_ok=True)
    top = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    corpus, folder, scratch = top / "corpus", top / "input", top / "scratch"
    for new in (corpus, folder, scratch):
        new.mkdir()
    for number, content in enumerate(parser.seeds(scratch)):
        (corpus / str(number)).write_bytes(content)

    def read(data: bytes) -> None:
        with contextlib.suppress(UserError, DamagedError):
            parser.read(data, folder)

    limits = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=65536"]
    kept = f"-artifact_prefix={FOUND}/{name}-"
    atheris.Setup([name, *limits, f"-seed={seed}", kept, str(corpus)], read)
    atheris.Fuzz()


def main() -> int:
    """All parsers in turn, each in a process of its own; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PARSERS))
    parser.add_argument("--seconds", type=int, default=60, help="for each parser")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        fuzz(args.names[0], args.seconds, args.seed)
    failed = []
    for name in args.names or PARSERS:
        command = [sys.executable, __file__, name, "--here", f"--seconds={args.seconds}"]
        done = subprocess.run([*command, f"--seed={args.seed}"], capture_output=True, text=True)
        lines = done.stderr.splitlines()
        runs = next((line for line in reversed(lines) if line.startswith("Done")), "failed")
        print(f"{name}: {runs}", flush=True)
        if done.returncode:
            failed.append(name)
            print(done.stdout + "\n".join(lines[-40:]), flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
