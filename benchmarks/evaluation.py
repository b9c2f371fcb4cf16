"""The same tasks by this project's backend of lm-evaluation-harness and by its PyTorch one.

    python benchmarks/evaluation.py models/SmolLM2-135M-Instruct --gsm8k FOLDER

FOLDER has GSM8K's train.jsonl and test.jsonl. Three tasks are made of them: a multiple choice among
the answers of four questions, completions with two examples, and the perplexity of worked answers.
"""

import argparse
import json
import logging
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import yaml
from gmt_train.evaluate.backend import NAME
from gmt_train.evaluate.evaluation import Settings, ask
from gmt_train.evaluate.tasks import load_tasks, parse_data
from lm_eval.api.registry import get_model

JSON: dict[str, Any] = {"dataset_path": "json", "test_split": "test"}
TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "num_fewshot": 0,
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
    },
    "perplexity": {
        "num_fewshot": 0,
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}} {{answer}}",
    },
}
RECIPE = Path(__file__).parents[1] / "configs/tasks/gsm8k.yaml"
COMPLETIONS = {
    "include": str(RECIPE.resolve()),
    "task": "completions",
    "generation_kwargs": {"until": ["Question:"], "max_gen_toks": 32, "do_sample": False},
}


def main() -> None:
    """Prints the scores of both, the largest differences, and the tokens per second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--gsm8k", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--tasks", default="choice,perplexity,completions")
    parser.add_argument("--softmax-dtype", default="float32", help="of the PyTorch backend")
    args = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {platform.machine()}; ", end=""
    )
    print(f"{args.limit} questions of each task, {args.batch_size} together\n")
    with tempfile.TemporaryDirectory() as folder:
        names = _write_tasks(args, Path(folder))
        runs = {backend: _run(backend, args, names) for backend in (NAME, "hf")}
    print(
        "| task | score, gmt-train | score, hf | difference | tokens/s, gmt-train | tokens/s, hf |"
    )
    print("|---|---|---|---|---|---|")
    for name in runs[NAME]:
        (ours, seconds, tokens), (theirs, other, _) = runs[NAME][name], runs["hf"][name]
        difference = _difference(ours["samples"][name], theirs["samples"][name])
        scores = [_score(result["results"][name]) for result in (ours, theirs)]
        rates = [f"{tokens / time:,.0f}" for time in (seconds, other)]
        print(f"| {' | '.join([name, *scores, difference, *rates])} |")


def _write_tasks(args: argparse.Namespace, folder: Path) -> list[str]:
    """The task files; those of likelihoods have the first questions as their data."""
    lines = (args.gsm8k / "test.jsonl").read_text(encoding="utf-8").splitlines()[: args.limit]
    docs = [json.loads(line) for line in lines]
    answers = [doc["answer"].rpartition("#### ")[2] for doc in docs]
    for index, doc in enumerate(docs):
        doc["choices"] = [answers[(index + step) % len(docs)] for step in (2, 0, 5, 1)]
        doc["label"] = 1
    data = folder / "test.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    names = []
    for name, task in {**TASKS, "completions": COMPLETIONS}.items():
        file = folder / f"{name}.yaml"
        own = {"task": name, **JSON, "dataset_kwargs": {"data_files": {"test": str(data)}}}
        file.write_text(yaml.safe_dump(task if "include" in task else own | task))
        if name in args.tasks.split(","):
            names.append(str(file))
    return names


def _run(backend: str, args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {"pretrained": args.model}
    if backend == "hf":
        options |= {"dtype": "float32", "device": "cpu", "softmax_dtype": args.softmax_dtype}
    model = get_model(backend).create_from_arg_obj(options, {"batch_size": args.batch_size})
    splits = [f"completions.{split}={args.gsm8k}/{split}.jsonl" for split in ("train", "test")]
    results = {}
    for name in names:
        is_file = Path(name).stem == "completions"
        data = parse_data(splits if is_file else [])
        for _ in range(2 if backend == NAME else 1):  # The first round compiles.
            tasks = load_tasks([name], data, num_fewshot=2, run_code=False)
            begin, counted = time.perf_counter(), getattr(model, "num_tokens", 0)
            result = ask(model, tasks, Settings(limit=args.limit), log_samples=True)
            seconds = time.perf_counter() - begin
        tokens = getattr(model, "num_tokens", 0) - counted
        results[Path(name).stem] = result, seconds, tokens
        print(f"{backend}: {Path(name).stem} took {seconds:.1f} s", file=sys.stderr, flush=True)
    return results


def _score(metrics: dict[str, Any]) -> str:
    kept = {
        key.removesuffix(",none"): value
        for key, value in metrics.items()
        if isinstance(value, float) and "stderr" not in key
    }
    return ", ".join(f"{key} {value:.6g}" for key, value in kept.items())


def _difference(ours: list[Any], theirs: list[Any]) -> str:
    """The largest difference of a log-likelihood, or how many completions are equal."""
    pairs = [
        (a["resps"], b["resps"])
        for a, b in zip(
            sorted(ours, key=lambda row: row["doc_id"]),
            sorted(theirs, key=lambda row: row["doc_id"]),
            strict=True,
        )
    ]
    if isinstance(pairs[0][0][0][0], str):
        return f"{sum(a == b for a, b in pairs)} of {len(pairs)} completions equal"
    flat = [(_flat(a), _flat(b)) for a, b in pairs]
    return f"{max(abs(x - y) for a, b in flat for x, y in zip(a, b, strict=True)):.1e}"


def _flat(value: Any) -> list[float]:
    if isinstance(value, (list, tuple)):
        return [number for part in value for number in _flat(part)]
    return [float(value)]


if __name__ == "__main__":
    main()
