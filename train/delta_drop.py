"""How much of what training changed its result needs: losses after part of it is taken back."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.console import Console

from .buckets.mirror import bring
from .data.loader import open_data
from .errors import UserError
from .evaluation import make_evaluate
from .hf.hub import resolve_model
from .hf.load import load_params
from .hf.tokenizer import load_tokenizer
from .model import load_model_config, stacked_axes
from .program import Program
from .run import Run
from .sharding import make_mesh

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
# Given the sizes of a tensor's changes and a number, the indices of those that are taken back.
Pick = Callable[[np.ndarray, int], np.ndarray]


def delta_drop(run: Run, console: Console) -> list[dict[str, Any]]:
    """The evaluation losses after a growing share of every tensor's changes is taken back.

    Of the entries of a tensor that training changed, the share with the smallest changes, or one at
    random, gets the base's value again. The weights of base and export, and a third of the two, are
    in this machine's memory.

    Returns:
      Records with `dropped`, the share; and, for each loss of evaluations, `smallest_LOSS` and
      `random_LOSS`.

    Raises:
      UserError: if the run is not one of `sft`, has no export or no evaluation data.
    """
    config = run.config()
    if config.objective.is_preference or jax.process_count() > 1:
        raise UserError(f"{run.folder}: losses without changes are those of sft, in one process")
    bring(run.export)
    if not run.export.is_dir():
        raise UserError(f"{run.folder} has no export yet; finish it, or run gmt-train export")
    base = resolve_model(config.model.path, config.model.revision)
    model, mesh = load_model_config(base), make_mesh(**config.mesh.model_dump())
    tokenizer = load_tokenizer(base, config.model.chat_template)
    data = open_data(config, tokenizer, model.vocab_size, mesh, console, run.clock())
    if not data.eval_batches:
        raise UserError(f"{run.folder} has no evaluation data to compute losses of")
    program = Program(config, model, mesh, data.steps)
    evaluate = make_evaluate(program, data)
    before, after = (jax.device_get(load_params(folder, model)) for folder in (base, run.export))
    rng = np.random.default_rng(config.seed)
    picks: dict[str, Pick] = {
        "smallest": smallest,
        "random": lambda sizes, count: rng.permutation(sizes.size)[:count],
    }
    rows = []
    for share in SHARES:
        row: dict[str, Any] = {"dropped": share}
        figures: dict[str, Any] = {}
        for name, pick in picks.items():
            if not figures or 0 < share < 1:  # Of none and of all, every pick is the same.
                params = take_back(before, after, share, pick)
                with jax.set_mesh(mesh):
                    figures = evaluate(jax.device_put(params, program.weight_shardings), 0)
            row |= {f"{name}_{key}": x for key, x in figures.items() if key.endswith("loss")}
        rows.append(row)
        console.print(f"dropped {share:.0%} of the changes", highlight=False)
    data.loader.close()
    return rows


def smallest(sizes: np.ndarray, count: int) -> np.ndarray:
    """The indices of the smallest sizes."""
    return np.argpartition(sizes, count)[:count] if count < sizes.size else np.arange(count)


def take_back(base: Any, tuned: Any, share: float, pick: Pick) -> Any:
    """The tuned weights with a share of each tensor's changes taken back; layers are tensors."""

    def of_leaf(path: Any, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        tensors = range(len(after)) if stacked_axes(path) is not None else [...]
        out = np.array(after)
        for index in tensors:
            old, new = np.ravel(before[index]), np.ravel(after[index])
            changed = np.flatnonzero(old != new)
            sizes = np.abs(new[changed] - old[changed])
            back = changed[pick(sizes, round(share * changed.size))]
            merged = new.copy()
            merged[back] = old[back]
            out[index] = merged.reshape(out[index].shape)
        return out

    return jax.tree_util.tree_map_with_path(of_leaf, base, tuned)
