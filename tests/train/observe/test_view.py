"""Charts for a terminal: what they show, in which size, and without colour."""

import io
import math
from itertools import pairwise
from typing import Any

import pytest
from rich.console import Console

from train.observe.view import View, plot

BLANK = chr(0x2800)


def _render(view: View, width: int = 100, height: int = 50, **options: Any) -> str:
    screen = io.StringIO()
    options = {"force_terminal": True, "color_system": None} | options
    Console(file=screen, width=width, height=height, **options).print(view)
    return screen.getvalue()


def _view(layers: int = 4, **figures: Any) -> View:
    view = View()
    for step in range(1, 9):
        view.add({"step": step, "loss": 1 / step, "tokens_per_s": 3.0})
        view.add({"step": step, "eval_task_loss": 2.0 + step, "eval_task_token_accuracy": 0.5})
    if figures:
        view.add({"step": 8, "tensors": figures})
    return view


def test_a_curve_falls_from_its_highest_to_its_lowest_value() -> None:
    points = [(step, 10.0 - step) for step in range(10)]
    title, *curve, axis = plot("loss", points, width=30, height=4)
    assert title.strip() == "loss 1"
    assert [line[:8].strip() for line in curve] == ["10", "", "", "1"]
    assert axis.split() == ["0", "9"]
    drawn = [[x for x, cell in enumerate(line[9:]) if cell != BLANK] for line in curve]
    assert drawn[0][0] == 0
    assert drawn[-1][-1] == 19
    assert sorted({x for row in drawn for x in row}) == list(range(20)), "without gaps"
    assert all(a[0] <= b[0] and a[-1] <= b[-1] for a, b in pairwise(drawn))


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.0, 1e-30, 5.0], [3.0] * 1000, [*range(1000)]])
def test_every_curve_has_the_size_that_is_asked_for(values: list[float]) -> None:
    lines = plot("loss", list(enumerate(map(float, values))), width=40, height=5)
    assert len(lines) == 7
    assert max(map(len, lines)) <= 40


def test_curves_stand_side_by_side_as_far_as_there_is_room() -> None:
    wide, narrow = _render(_view(), width=100), _render(_view(), width=50)
    assert "loss 0.125" in wide
    assert "eval task loss 10" in wide
    assert "eval task loss" not in narrow
    assert "accuracy" not in wide


LAYERS = {"layers/mlp/up/weight": [0.1, 0.4, 0.7, 1.0], "layers/norm": [1.0] * 4, "embed": 0.5}


def test_the_heat_map_shows_the_figure_that_differs_and_is_read_without_colour() -> None:
    constant = {name: [0.2] * 4 for name in LAYERS}
    text = _render(_view(**{"mask/masked": constant, "mask/overlap": LAYERS}))
    assert "mask: overlap by layer, step 8   ▁ 0.1 to █ 1" in text
    rows = dict(line.rsplit(" ", 1) for line in text.splitlines() if "▁" in line or "█" in line)
    assert rows["mlp/up"] == "▁▁▁▃▃▃▆▆▆███"
    assert "embed" not in text
    coloured = _render(_view(**{"mask/overlap": LAYERS}), color_system="truecolor")
    assert "\x1b[38;2;" in coloured


def test_without_a_mask_the_heat_map_shows_how_far_weights_move() -> None:
    norms = {"layers/a": [1.0, 2.0], "layers/b": [4.0, math.nan]}
    text = _render(
        _view(update_norm=norms, weight_norm={"layers/a": [2.0] * 2, "layers/b": [2.0] * 2})
    )
    assert "norm of update / norm of weights by layer, step 8   ▁ 0.5 to █ 2" in text
    assert "b ███???" in text
    assert "a ▁▁▁▅▅▅" in text, "by the logarithm"


def test_figures_by_parameter_alone_are_no_map() -> None:
    masked = {"layers/a": 0.1, "layers/b": 0.9}
    assert "by layer" not in _render(_view(**{"mask/masked": masked}))
    overlap = {"layers/a": [0.1, 0.9]}
    assert "overlap by layer" in _render(_view(**{"mask/masked": masked, "mask/overlap": overlap}))


def test_many_layers_share_a_character() -> None:
    values = [float(layer) for layer in range(200)]
    text = _render(_view(**{"mask/overlap": {"layers/a": values}}), width=60)
    (row,) = [line for line in text.splitlines() if line.startswith("a ")]
    assert len(row) == 60
    assert row.index("▂") < row.index("▅") < row.index("█")


@pytest.mark.parametrize("size", [(100, 12), (30, 50)])
def test_a_small_terminal_has_no_charts(size: tuple[int, int]) -> None:
    assert _render(_view(**{"mask/overlap": LAYERS}), *size).strip() == ""


def test_values_that_are_not_finite_are_left_out() -> None:
    view = _view()
    view.add({"step": 9, "loss": math.nan})
    assert "loss 0.125" in _render(view)
    assert _render(View()).strip() == ""
