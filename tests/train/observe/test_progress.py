"""What the user sees of a run: a live line on a terminal, plain lines elsewhere."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console

from train.observe.progress import Display

RECORD = {
    "step": 3,
    "loss": 1.5,
    "tokens_per_s": 1234.5,
    "masked_fraction": 0.2,
    "learning_rate": 1e-5,
    "seconds_left": 3725.0,
}


@contextmanager
def displaying(console: Console) -> Iterator[Display]:
    """The display of a run of ten updates."""
    display = Display(10, console)
    display.start(0)
    yield display
    display.stop()


def test_plain_lines_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    with displaying(Console()) as display:
        display.show(RECORD)
        display.show({"step": 3, "eval_loss": 1.25})
    assert capsys.readouterr().out.splitlines() == [
        "step 3/10  loss 1.5000  tokens/s 1,234  masked 20.00%  lr 1.00e-05  1:02:05 left",
        "step 3/10  eval loss 1.2500",
    ]


def test_plain_lines_on_a_dumb_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with displaying(Console(force_terminal=True)) as display:
        display.show({"step": 3, "eval_loss": 1.25})
        assert capsys.readouterr().out == "step 3/10  eval loss 1.2500\n"


@pytest.mark.parametrize("width", [80, 140])
def test_a_live_display_on_a_terminal(width: int) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=width)
    with displaying(console) as display:
        display.show(RECORD)
        display.show({"step": 3, "eval_loss": 1.25})
    last = screen.getvalue().rpartition("step")[2]
    shown = ["3/10", "1:02:05 left", "loss 1.5000", "eval loss 1.2500", "tokens/s 1,234"]
    for part in [*shown, "masked 20.00%", "lr 1.00e-05"]:
        assert part in last


def test_mfu_is_shown_if_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    with displaying(Console()) as display:
        display.show(RECORD | {"mfu": 0.4321})
    assert "tokens/s 1,234  MFU 43.2%" in capsys.readouterr().out


def test_a_quiet_console_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with displaying(Console(quiet=True)) as display:
        display.show(RECORD)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_a_skipped_update_is_shown_with_its_examples(terminal: bool) -> None:
    out = io.StringIO()
    display = Display(10, Console(file=out, force_terminal=terminal, width=200))
    names = [f"a[0].jsonl:{line}" for line in range(1, 7)]
    display.show({"step": 7, "skipped": "loss nan, gradient norm inf", "examples": names})
    expected = "step 7 is skipped: loss nan, gradient norm inf; its batch: "
    assert expected + ", ".join(names[:4]) + " and 2 more" in out.getvalue()


def test_a_resumed_run_shows_its_curves_from_the_beginning() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=80, height=40)
    display = Display(10, console)
    display.start(2, [{"step": step, "loss": 8.0 / step} for step in (1, 2)])
    display.show({"step": 4, "loss": 2.0, "seconds_left": 3.0})
    display.stop()
    frame = screen.getvalue().rpartition("loss 2 ")[2]
    assert "       8 " in frame
    assert frame.index("step") < frame.index("4/10") < frame.index("loss 2.0000")
