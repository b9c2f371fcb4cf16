"""From a JSONL file to packed rows, against `datasets.map` with the same tokenizer.

    python benchmarks/data.py models/SmolLM2-135M-Instruct --lines 100000 --lines 1000000
    python benchmarks/data.py models/SmolLM2-135M-Instruct --file train.jsonl \\
        --columns prompt=question,completion=answer

Each figure comes from a process of its own, which goes from the file to the tokens on disk.
`datasets.map` reads the file into its cache and tokenises prompt and completion (seconds: read +
map); gmt-train also makes loss masks, digests every example and packs (seconds: tokenise + pack).
CPU seconds are those of the process on all cores, its imports included. MiB is the most memory that
it held, mapped files left out.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Event, Thread

WORDS = "the of and a to in is was it for on that by this with are be from at as have"


def synthesise(file: Path, lines: int) -> None:
    """Writes prompts and completions of 5 to 60 words."""
    draw, words = random.Random(0), WORDS.split()
    with file.open("w") as out:
        for number in range(lines):
            texts = [" ".join(draw.choices(words, k=draw.randint(5, 60))) for _ in range(2)]
            record = {"prompt": f"{number} {texts[0]}", "completion": f" {texts[1]}."}
            out.write(json.dumps(record) + "\n")


def ours(model: Path, file: Path, columns: dict[str, str], folder: Path) -> tuple[float, ...]:
    """Seconds to tokenise and to pack, and the number of examples."""
    from gmt_train.data.chat import RecordReader
    from gmt_train.data.packing import pack
    from gmt_train.data.sources import open_source
    from gmt_train.data.token_store import open_store
    from gmt_train.hf.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model)
    started = time.perf_counter()
    reader = RecordReader("completion", columns)
    store = open_store(open_source(str(file)), tokenizer, reader, folder)
    tokenised = time.perf_counter()
    pack(store.index["length"].clip(max=2048), 2048, folder)
    return tokenised - started, time.perf_counter() - tokenised, len(store)


def theirs(model: Path, file: Path, columns: dict[str, str], folder: Path) -> tuple[float, ...]:
    """Seconds to read and to tokenise, and the number of examples."""
    from datasets import Dataset, disable_progress_bars
    from gmt_train.hf.tokenizer import load_tokenizer

    disable_progress_bars()
    tokenizer = load_tokenizer(model)
    prompt, completion = columns.get("prompt", "prompt"), columns.get("completion", "completion")

    def tokenise(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        texts = [p + c for p, c in zip(batch[prompt], batch[completion], strict=True)]
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return {"input_ids": ids}

    started = time.perf_counter()
    records = Dataset.from_json(str(file), cache_dir=str(folder))
    read = time.perf_counter()
    examples = records.map(tokenise, batched=True, remove_columns=records.column_names)
    return read - started, time.perf_counter() - read, len(examples)


def memory() -> int:
    """Bytes that this process holds, mapped files left out."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if "RssAnon" in line).split()[1]) * 1024


def measure_here(which: str, model: Path, file: Path, columns: dict[str, str]) -> None:
    """Measures one of the two in this process, and prints the result for `measure`."""
    done, peak = Event(), 0

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, memory())

    watcher = Thread(target=watch)
    watcher.start()
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        measured = {"ours": ours, "theirs": theirs}[which](model, file, columns, Path(folder))
    busy = time.process_time() - started
    done.set()
    watcher.join()
    print(json.dumps([*measured, busy, peak]))


def measure(which: str, model: Path, file: Path, columns: dict[str, str]) -> list[float]:
    """Measures one of the two in a process of its own."""
    command = [sys.executable, __file__, str(model), "--child", which, "--file", str(file)]
    command += ["--columns", ",".join(f"{k}={v}" for k, v in columns.items())] if columns else []
    # Both use the tokenizer's threads.
    env = os.environ | {"TOKENIZERS_PARALLELISM": "true", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    result: list[float] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(name: str, model: Path, file: Path, columns: dict[str, str], repeat: int) -> None:
    """Prints a line for each of the two: the fastest of several measurements, taken in turns."""
    best: dict[str, list[float]] = {}
    for _ in range(repeat):
        for which in ("theirs", "ours"):
            print(f"{name}: measuring {which}", file=sys.stderr, flush=True)
            result = measure(which, model, file, columns)
            if which not in best or sum(result[:2]) < sum(best[which][:2]):
                best[which] = result
    for which, label in (("theirs", "datasets.map"), ("ours", "gmt-train")):
        first, second, count, busy, peak = best[which]
        rate = count / (first + second)
        cells = [name, label, f"{first:.1f} + {second:.1f}", f"{rate:,.0f}", f"{busy:.1f}"]
        cells.append(f"{peak / 2**20:,.0f}")
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--columns", default="")
    parser.add_argument("--lines", type=int, action="append", default=[])
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--child", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    columns = dict(pair.split("=") for pair in args.columns.split(",") if pair)
    if args.child:
        measure_here(args.child, args.model, args.file, columns)
        return
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    print("| data | way | seconds | examples/s | CPU seconds | MiB |")
    print("|---|---|---|---|---|---|")
    if args.file:
        compare(args.file.name, args.model, args.file, columns, args.repeat)
    for lines in args.lines:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.jsonl"
            synthesise(file, lines)
            compare(f"{lines:,} lines", args.model, file, {}, args.repeat)


if __name__ == "__main__":
    main()
