"""The best evaluation is a function of the records."""

import math
from pathlib import Path

import pytest

from train.best import Best, find_eval_figures


def _best(metric: str, values: list[float], patience: int | None = None) -> Best:
    best = Best(metric, patience)
    for number, value in enumerate(values):
        best.add({"step": number, metric: value})
    return best


@pytest.mark.parametrize(
    ("metric", "values", "step"),
    [
        ("eval_loss", [0.1, 3.0, 2.0, 2.5], 2),  # Not that before the first update.
        ("eval_task_token_accuracy", [0.9, 0.1, 0.3, 0.2], 2),
        ("eval_loss", [1.0, 2.0, 2.0], 1),  # The first of equal ones.
        ("eval_loss", [1.0, math.nan, 5.0, math.nan], 2),
        ("eval_loss", [1.0, math.nan], None),
        ("eval_loss", [1.0], None),
    ],
)
def test_the_best_step(metric: str, values: list[float], step: int | None) -> None:
    assert _best(metric, values).step == step


@pytest.mark.parametrize(
    ("values", "is_over"),
    [
        ([0.0, 3.0, 2.0, 2.5], False),
        ([0.0, 3.0, 2.0, 2.5, 2.0], True),
        ([0.0, 3.0, 2.0, 2.5, 1.9], False),
        ([0.0, 3.0, math.nan, math.nan], True),
    ],
)
def test_a_run_is_over_after_the_patience(values: list[float], is_over: bool) -> None:
    assert _best("eval_loss", values, patience=2).is_over == is_over
    assert not _best("eval_loss", values).is_over


def test_records_without_the_metric_do_not_count() -> None:
    best = _best("eval_loss", [0.0, 2.0], patience=1)
    best.add({"step": 2, "loss": 9.0})
    best.add({"step": 2, "eval_task_loss": 9.0})
    assert not best.is_over
    best.replay([{"step": 4, "eval_loss": 7.0}])
    assert (best.step, best.last_step) == (4, 4)


def test_a_checkpoint_that_is_gone_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = _best("eval_loss", [0.0, 2.0])
    assert best.saved_step(tmp_path) is None
    assert "the checkpoint with the best eval_loss 2 at step 1 is not there" in (
        capsys.readouterr().err
    )
    (tmp_path / "1").mkdir()
    assert best.saved_step(tmp_path) == 1


def test_the_figures_of_evaluations_are_found_by_their_names() -> None:
    names = ["eval_loss", "eval_a_loss", "eval_a_token_accuracy", "eval_accuracy"]
    record = dict.fromkeys(["step", "loss", "eval_rewards/margin", *names], 1.0)
    assert find_eval_figures(record) == names
