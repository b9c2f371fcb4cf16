"""The evaluation of a run: the objective's means over each set of evaluation data."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax

from .data.loader import RunData
from .errors import UserError
from .program import Program
from .step import Sums, jit_eval_step, plain_params

# Batches that are computed while the next ones are put on the devices. On CPUs one: programs with
# collectives that are in flight together can starve each other of threads.
_IN_FLIGHT = 8


def make_evaluate(program: Program, data: RunData) -> Callable[[Any, int], dict[str, float]]:
    """The function from parameters and step to the means over all evaluation data.

    Figures are named `eval_loss`, or `eval_NAME_loss` of data with a name. They are copied to the
    host once, after the last batch.
    """
    shardings = plain_params(program.shardings.params)
    eval_step = jit_eval_step(program.eval_objective, program.mesh, shardings)
    most = 1 if program.mesh.devices.flat[0].platform == "cpu" else _IN_FLIGHT

    def evaluate(params: Any, step: int) -> dict[str, float]:
        weights = plain_params(params)
        sums: dict[str, list[Sums]] = {}
        for name, open_batches in data.eval_batches.items():
            done = sums[name] = []
            with open_batches() as batches:
                for batch in batches:
                    done.append(eval_step(weights, batch))
                    jax.block_until_ready(done[-most:][0])
        figures: dict[str, float] = {}
        for name, parts in zip(sums, jax.device_get([*sums.values()]), strict=True):
            figures |= {_prefix(name) + key: mean for key, mean in _means(parts).items()}
        return figures

    return evaluate


def check_metric(program: Program, data: RunData, metric: str | None) -> None:
    """Checks that evaluations have a metric, without computing one.

    Raises:
      UserError: naming the metrics that there are.
    """
    if metric is None:
        return
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), program.abstract_batch()
    )
    with jax.set_mesh(program.mesh):
        sums = jax.eval_shape(program.eval_objective, program.abstract_weights, batch)
    names = [
        _prefix(name) + key for name in data.eval_batches for key in ("loss", *sorted(sums.metrics))
    ]
    if metric not in names:
        raise UserError(
            f"checkpoint.keep_best: evaluations have no {metric!r}; they have {', '.join(names)}"
        )


def _prefix(name: str) -> str:
    return f"eval_{name}_" if name else "eval_"


def _means(parts: list[Sums]) -> dict[str, float]:
    totals: Counter[str] = Counter()
    for sums in parts:
        figures = {"weight": sums.weight, "loss": sums.loss} | sums.metrics
        totals.update({name: float(value) for name, value in figures.items()})
    weight = totals.pop("weight")
    return {name: total / weight for name, total in totals.items()}
