"""The best evaluation of a run, and whether a run that no longer improves is to end."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .config import Config
from .errors import warn


class Best:
    """The best evaluation so far by a metric, a function of the run's records alone.

    A resumed run finds the same again in the records that it kept. The evaluation before the first
    update does not count: no checkpoint has its weights.

    Args:
      metric: the figure of an evaluation, such as `eval_loss`. Smaller is better if its name ends
        in `loss`, else larger.
      patience: evaluations in a row without a better one after which the run is to end; None: it
        is not.

    Attributes:
      step: the updates done at the best evaluation; None before the first one.
      value: the metric there.
      last_step: the updates done at the last evaluation; None before the first one.

    Example:
      >>> from train.best import Best
      >>> best = Best("eval_loss", patience=2)
      >>> for step, loss in [(10, 2.0), (20, 1.5), (30, 1.6), (40, 1.5)]:
      ...     best.add({"step": step, "eval_loss": loss})
      >>> best.step, best.value, best.is_over
      (20, 1.5, True)
    """

    def __init__(self, metric: str, patience: int | None = None) -> None:
        self.metric, self._patience = metric, patience
        self._sign = 1.0 if metric.endswith("loss") else -1.0
        self.replay(())

    @classmethod
    def of(cls, config: Config, records: Iterable[Mapping[str, Any]] = ()) -> "Best | None":
        """The best evaluation in records by the metric of a config, if it has one."""
        if config.checkpoint.keep_best is None:
            return None
        best = cls(config.checkpoint.keep_best, config.evaluation.patience)
        best.replay(records)
        return best

    def replay(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Begins anew, with records that there are already."""
        self.step: int | None = None
        self.last_step: int | None = None
        self.value, self._since = math.nan, 0
        for record in records:
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """Takes a record into account, if it has the metric."""
        value = record.get(self.metric)
        if value is None or record["step"] == 0:
            return
        self.last_step = record["step"]
        # Nothing is better than a number, nor is what is not a number.
        if (math.isnan(self.value) and not math.isnan(value)) or self._is_better(value):
            self.step, self.value, self._since = record["step"], value, 0
        else:
            self._since += 1

    def _is_better(self, value: float) -> bool:
        return self._sign * value < self._sign * self.value

    @property
    def is_over(self) -> bool:
        """Whether the last evaluations, as many as the patience, were not better."""
        return self._patience is not None and self._since >= self._patience

    def saved_step(self, checkpoints: Path) -> int | None:
        """The step of the best evaluation, if a checkpoint of it is in the folder."""
        if self.step is None or (checkpoints / str(self.step)).is_dir():
            return self.step
        warn(f"{checkpoints}: the checkpoint with the best {self} is not there")
        return None

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.6g} at step {self.step}"


def find_eval_figures(record: Mapping[str, Any]) -> list[str]:
    """The names of a record's losses and accuracies on evaluation data, in their order."""
    return [name for name in record if re.fullmatch(r"eval_(.*_)?(loss|accuracy)", name)]
