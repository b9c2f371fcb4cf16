"""Evaluates a model by tasks, and reports and stores the results."""

import json
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval import evaluate as lm_evaluate
from lm_eval.utils import handle_non_serializable, make_table

from ..errors import UserError
from ..files import atomic_file, check_file
from .backend import GmtTrainLM
from .tasks import Data, load_tasks


@dataclass(frozen=True)
class Settings:
    """How tasks are asked.

    Attributes:
      num_fewshot: examples before each question; None: as many as the task says.
      limit: questions of each task; None: all.
      chat_template: whether prompts are turns of the chat template.
      multiturn: whether examples are turns of their own.
      system: the system turn.
      run_code: whether answers may be run, in the sandbox.
      seed: of the examples that are drawn, and of sampled completions.
    """

    num_fewshot: int | None = None
    limit: int | None = None
    chat_template: bool = False
    multiturn: bool = False
    system: str | None = None
    run_code: bool = False
    seed: int = 1234

    def __post_init__(self) -> None:
        if self.multiturn and not self.chat_template:
            raise UserError("--multiturn: examples are turns of the chat template; add --chat")


def evaluate(
    model: str,
    tasks: Sequence[str],
    data: Data,
    settings: Settings,
    out: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """lm-eval's results of a model.

    Args:
      model: a run, a model folder or a hub name.
      tasks: names, or paths of YAML files.
      data: the files of those.
      out: a folder that results.json and the samples of each task are written to.
      options: of the model, as those of `GmtTrainLM`.

    Raises:
      UserError: if the model or a task cannot be read.
    """
    if out is not None:
        check_file(out / "results.json")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # Their data is read before the weights, which takes longer.
    loaded = load_tasks(tasks, data, num_fewshot=settings.num_fewshot, run_code=settings.run_code)
    language_model = GmtTrainLM(model, seed=settings.seed, **options)
    start = time.monotonic()
    results = ask(language_model, loaded, settings, log_samples=out is not None)
    mesh = options.pop("mesh", None)
    results |= {
        "seconds": round(time.monotonic() - start, 1),
        "tokens": language_model.num_tokens,
        "model": {"name": model, **options, **language_model.get_model_info()},
        "mesh": None if mesh is None else dict(mesh.shape),
        "settings": asdict(settings),
        "versions_of": {name: version(name) for name in ("lm_eval", "jax", "transformers")},
    }
    language_model.keep(results)
    if out is not None:
        _write(results, out)
    return results


def ask(
    language_model: Any, loaded: dict[str, Any], settings: Settings, *, log_samples: bool
) -> dict[str, Any]:
    """lm-eval's results of any of its models.

    Args:
      loaded: as from `load_tasks`.
      log_samples: whether the results have every prompt and answer.
    """
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(settings.seed)
    results: dict[str, Any] = lm_evaluate(
        language_model,
        loaded,
        limit=settings.limit,
        log_samples=log_samples,
        system_instruction=settings.system,
        apply_chat_template=settings.chat_template,
        fewshot_as_multiturn=settings.multiturn,
        confirm_run_unsafe_code=settings.run_code,
    )
    return results


def table(results: dict[str, Any]) -> str:
    """The results of each task and group, as a Markdown table."""
    parts = [make_table(results)]
    if results.get("groups"):
        parts.append(make_table(results, "groups"))
    return "\n".join(parts)


def _write(results: dict[str, Any], out: Path) -> None:
    samples = results.pop("samples", {})
    with atomic_file(out / "results.json") as new:
        new.write_text(_dumped(results, indent=2) + "\n", encoding="utf-8")
    for task, rows in samples.items():
        with atomic_file(out / f"samples_{task}.jsonl") as new:
            new.write_text("".join(f"{_dumped(row)}\n" for row in rows), encoding="utf-8")


def _dumped(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, default=handle_non_serializable, ensure_ascii=False)
