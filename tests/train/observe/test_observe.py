"""What the user sees: a live line on a terminal, plain lines elsewhere, a table at the end."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from train.observe.progress import Display
from train.observe.report import report
from train.run import Run, read_records

RECORD = {
    "step": 3,
    "loss": 1.5,
    "tokens_per_s": 1234.5,
    "masked_fraction": 0.2,
    "learning_rate": 1e-5,
    "seconds_left": 3725.0,
}


def test_plain_lines_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(10, 0, Console()) as display:
        display.show(RECORD)
        display.show({"step": 3, "eval_loss": 1.25})
    assert capsys.readouterr().out.splitlines() == [
        "step 3/10  loss 1.5000  tokens/s 1,234  masked 20.00%  lr 1.00e-05  1:02:05 left",
        "step 3/10  eval loss 1.2500",
    ]


@pytest.mark.parametrize("width", [80, 140])
def test_a_live_display_on_a_terminal(width: int) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=width)
    with Display(10, 0, console) as display:
        display.show(RECORD)
        display.show({"step": 3, "eval_loss": 1.25})
    last = screen.getvalue().rpartition("step")[2]
    shown = ["3/10", "1:02:05 left", "loss 1.5000", "eval loss 1.2500", "tokens/s 1,234"]
    for part in [*shown, "masked 20.00%", "lr 1.00e-05"]:
        assert part in last


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


def test_mfu_is_shown_where_it_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path)
    run.log(RECORD)
    assert "MFU" not in _report(run)
    run.log(RECORD | {"mfu": 0.4321})
    assert "43.2% of the devices' peak (median)" in _report(run)
    with Display(10, 0, Console()) as display:
        display.show(RECORD | {"mfu": 0.4321})
    assert "tokens/s 1,234  MFU 43.2%" in capsys.readouterr().out


def test_a_line_cut_off_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.log(RECORD)
    with run.metrics_file.open("a") as out:
        out.write('{"step": 4, "lo')
    run.forget_after(3)
    assert run.metrics_file.read_text().count("\n") == 1
    run.forget_after(2)
    assert run.metrics_file.read_text() == ""


def test_records_survive_any_text(tmp_path: Path) -> None:
    run = Run(tmp_path)
    texts = ["line\u2028separator", "naïve 東京 🙂", "next\x85line"]
    for text in texts:
        run.log_sample({"step": 1, "prompt": "p", "completion": text})
    raw = run.samples_file.read_bytes()
    run.samples_file.write_bytes(raw[:-9])  # A crash cuts the last line anywhere.
    assert [r["completion"] for r in read_records(run.samples_file)] == texts[:2]
