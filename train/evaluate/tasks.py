"""The tasks of an evaluation: named ones and files, and the data that files are given."""

import difflib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lm_eval.api.registry import register_metric
from lm_eval.tasks import TaskManager

from ..buckets.fetch import fetch
from ..errors import UserError
from ..files import shipped
from .sandbox import runs_to_its_end

# Files of data by split, of each task or, under "", of any.
Data = Mapping[str, Mapping[str, str]]
PASS = "pass@1"


@register_metric(metric=PASS, higher_is_better=True, aggregation="mean")
def pass_at_1(references: Sequence[str], predictions: Sequence[str]) -> float:
    """The share of programs that pass their tests; each is run in the sandbox."""
    programs = [f"{code}\n{tests}" for code, tests in zip(predictions, references, strict=True)]
    return sum(map(runs_to_its_end, programs)) / len(programs)


def parse_data(options: Sequence[str]) -> Data:
    """The files that options such as test=FILE or gsm8k_file.test=FILE name.

    Raises:
      UserError: for an option of another form, or a file that does not exist.
    """
    data: dict[str, dict[str, str]] = {}
    for option in options:
        where, equals, path = option.partition("=")
        task, _, split = where.rpartition(".")
        if not (equals and split and path):
            raise UserError(f"--data {option}: write SPLIT=FILE or TASK.SPLIT=FILE")
        data.setdefault(task, {})[split] = _checked(path, f"--data {option}")
    return data


def load_tasks(
    names: Sequence[str], data: Data, *, num_fewshot: int | None, run_code: bool
) -> dict[str, Any]:
    """The tasks and groups with their data, as lm-eval's `evaluate` takes them.

    Args:
      names: of tasks, groups or tags, also with wildcards; or paths of YAML files.
      data: the data of those files.
      num_fewshot: examples before each question, unless the task is defined without; None: as many
        as the task says; 0 needs no data for them.
      run_code: whether answers of tasks may be run.

    Raises:
      UserError: for a name that is not known, a file that defines no task, data that is missing or
        cannot be read, or a task that runs code without `run_code` or outside the sandbox.
    """
    # Its own definitions, thousands of files, are read only if one of them is asked for.
    manager = TaskManager(include_defaults=not all(map(_is_file, names)))
    specs: list[str] = []
    used: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            if not _is_file(name):
                specs += _find(manager, name)
                continue
            path = shipped(Path(name)).resolve()
            task = _read(path)
            used |= {"", str(task.get("task"))}
            _check_code(task, run_code)
            files = _files(task, data, num_fewshot)
            overlay = Path(folder) / f"{len(specs)}.yaml"  # The file, with the data it is given.
            overlay.write_text(yaml.safe_dump({"include": str(path), **files}), encoding="utf-8")
            specs.append(str(overlay))
        if unused := [f"{task}.{next(iter(data[task]))}" for task in data.keys() - used]:
            raise UserError(f"--data {unused[0].lstrip('.')}: no file of --tasks takes it")
        loaded = _load(manager, specs)
    for name, task in loaded["tasks"].items():
        metrics = {entry.get("metric") for entry in task.config.metric_list or ()}
        if getattr(task, "UNSAFE_CODE", False) and metrics != {PASS}:
            raise _outside(name)
        own = task.get_config("num_fewshot")
        if num_fewshot is None or own == 0:  # A task without examples never gets any.
            task.set_config("num_fewshot", own or 0)
        else:
            task.set_config("num_fewshot", num_fewshot)
    return loaded


def _is_file(name: str) -> bool:
    return Path(name).suffix in (".yaml", ".yml")


def _find(manager: TaskManager, name: str) -> list[str]:
    """The tasks, groups and tags of a name with or without wildcards."""
    found: list[str] = manager.match_tasks([name])
    if not found:
        near = difflib.get_close_matches(name, manager.all_tasks, n=3)
        known = f"; near it: {', '.join(near)}" if near else ""
        raise UserError(
            f"--tasks {name}: no such task{known}; gmt-train lm-eval ls tasks lists all, and a "
            "file's name ends in .yaml"
        )
    for task in found:  # Before it is loaded, which runs its modules.
        path = getattr(manager.task_index.get(task), "yaml_path", None)
        if path is not None and _read(path).get("unsafe_code"):
            raise _outside(task)
    return found


def _outside(name: str) -> UserError:
    return UserError(
        f"{name}: runs code outside this program's sandbox; use a file of configs/tasks, or "
        "lm-eval itself: gmt-train lm-eval run … --confirm_run_unsafe_code"
    )


def _load(manager: TaskManager, specs: list[str]) -> dict[str, Any]:
    try:
        return dict(manager.load(specs))
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"--tasks: a task cannot be loaded ({reason}); a named task's data is on the hub, a "
            "file's is what --data names"
        ) from None


class _Loader(yaml.SafeLoader):
    """Reads lm-eval's task files; functions are read as their names."""


_Loader.add_constructor("!function", lambda loader, node: str(node.value))


def _read(path: Path, seen: frozenset[Path] = frozenset()) -> dict[str, Any]:
    """A task's definition, with what it includes."""
    try:
        task = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
        raise UserError(f"{path}: {reason}; --tasks takes lm-eval's YAML files") from None
    if not isinstance(task, dict):
        raise UserError(f"{path}: is no task; --tasks takes lm-eval's YAML files")
    included = task.get("include", [])
    merged: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        other = (path.parent / name).resolve()
        if other in seen:
            raise UserError(f"{path}: includes itself by {name}")
        merged |= _read(other, seen | {path})
    merged |= task
    if not seen and not ("task" in merged or "group" in merged):
        raise UserError(f"{path}: has neither task nor group; --tasks takes lm-eval's YAML files")
    return merged


def _files(task: dict[str, Any], data: Data, num_fewshot: int | None) -> dict[str, Any]:
    """The keys of a task that name the files of its splits: those given, or its own."""
    options = task.get("dataset_kwargs") or {}
    files = options.get("data_files")
    name = str(task.get("task"))
    given = {**data.get("", {}), **data.get(name, {})}
    if not isinstance(files, dict):
        if data.get(name):
            raise UserError(f"--data {name}.{next(iter(given))}: the task has no data_files")
        return {}
    if unknown := sorted(data.get(name, {}).keys() - files.keys()):
        raise UserError(f"--data {name}.{unknown[0]}: its splits are {', '.join(files)}")
    files = {split: given.get(split, path) for split, path in files.items()}
    changed: dict[str, Any] = {}
    asked = (task.get("test_split"), task.get("validation_split"))
    for split in set(files) - set(asked):
        if num_fewshot == 0 and not Path(files[split]).exists():  # It has examples alone.
            del files[split]
            keys = ("training_split", "fewshot_split")
            changed |= {key: None for key in keys if task.get(key) == split}
    files = {split: _checked(path, f"{name}: data of {split}") for split, path in files.items()}
    return {**changed, "dataset_kwargs": {**options, "data_files": files}}


def _check_code(task: dict[str, Any], run_code: bool) -> None:
    if task.get("unsafe_code") and not run_code:
        raise UserError(
            f"{task.get('task')}: runs the model's code, in a sandbox; ask for it by --run-code"
        )
    if task.get("unsafe_code"):
        runs_to_its_end("pass")  # Or there is no sandbox here, which is known before hours of work.


def _checked(path: str, where: str) -> str:
    file = fetch(path)
    if not file.is_file():
        raise UserError(f"{where}: {path} does not exist; name it by --data SPLIT=FILE")
    return str(file)
