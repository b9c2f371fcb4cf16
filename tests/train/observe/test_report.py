"""The table at the end of a run."""

import io
from pathlib import Path

from rich.console import Console

from train.observe.report import report
from train.run import Run

RECORD = {"step": 3, "loss": 1.5, "tokens_per_s": 1234.5, "masked_fraction": 0.2}


def _report(run: Run) -> str:
    screen = io.StringIO()
    Console(file=screen, width=100).print(report(run))
    return screen.getvalue()


def test_the_report_compares_before_and_after(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.log({"step": 0, "eval_loss": 2.0})
    for step, speed in ((1, 10.0), (2, 30.0), (3, 20.0)):
        run.log(RECORD | {"step": step, "tokens_per_s": speed})
    run.log({"step": 3, "eval_loss": 1.5})
    for step, text in ((0, "old words"), (3, "new words")):
        run.log_sample({"step": step, "prompt": "say", "completion": text})
    text = _report(run)
    assert "2.0000 → 1.5000  (-25.0%)" in text
    assert "20.00% of all entries" in text
    assert "20 (median)" in text
    assert text.index("before") < text.index("old words") < text.index("after")
    assert text.index("after") < text.index("new words")


def test_the_report_of_a_run_without_evaluation_has_no_such_line(tmp_path: Path) -> None:
    assert "eval loss" not in _report(Run(tmp_path))


def test_mfu_and_the_wait_for_data_are_shown_if_they_are_known(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.log(RECORD)
    assert "MFU" not in _report(run)
    assert "waiting" not in _report(run)
    run.log(RECORD | {"mfu": 0.4321, "data_wait": 0.25})
    assert "43.2% of the devices' peak (median)" in _report(run)
    assert "25.0% of the time (median)" in _report(run)


def test_the_accuracy_on_pairs_is_compared_before_and_after(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step, accuracy in ((0, 0.5), (3, 0.625)):
        run.log({"step": step, "eval_loss": 0.6, "eval_accuracy": accuracy})
    assert "eval accuracy  50.0% → 62.5%" in _report(run)
