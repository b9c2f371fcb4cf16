"""Which curves share a chart, and what heat maps show."""

from typing import Any

import numpy as np

from train.observe.page.charts import (
    Grid,
    curves,
    draw_curves,
    draw_grid,
    grids_of_tensors,
)

RECORDS: list[dict[str, Any]] = [
    {"step": 0, "data": ["7 rows"], "eval_loss": 2.0, "eval_task_loss": 3.0},
    {"step": 2, "loss": 1.5, "rewards/margin": 0.1, "seconds_left": 9.0, "num_pairs": 4},
    {"step": 2, "skipped": "loss nan", "examples": ["a:1"]},
    {"step": 2, "eval_loss": 1.0, "eval_rewards/margin": 0.2, "eval_score": 7.0},
]


def test_a_figure_shares_its_chart_with_the_same_of_evaluations() -> None:
    charts = curves({"a": RECORDS, "b": RECORDS[:2]})
    found = {name: [(line.run, line.name) for line in lines] for name, lines in charts.items()}
    losses = [("a", "eval_loss"), ("a", "eval_task_loss"), ("a", "loss")]
    assert found == {
        "loss": [*losses, *[("b", name) for _, name in losses]],
        "rewards/margin": [
            ("a", "rewards/margin"),
            ("a", "eval_rewards/margin"),
            ("b", "rewards/margin"),
        ],
        "score": [("a", "eval_score")],
    }
    assert charts["loss"][0][2:] == ([0, 2], [2.0, 1.0])


def test_a_long_curve_is_thinned_out_and_keeps_both_ends() -> None:
    rows = [{"step": step, "loss": float(step)} for step in range(5000)]
    ((name, lines),) = curves({"a": rows}).items()
    source = draw_curves(name, lines).renderers[0].data_source.data
    assert len(source["step"]) == 1000
    assert (source["step"][0], source["step"][-1]) == (0, 4999)


def test_figures_of_tensors_by_layer_and_by_update() -> None:
    rows = [
        {"step": step, "tensors": {"norm": {"layers/w": [step, 2.0, 3.0], "b": 7.0}}}
        for step in (1, 2)
    ]
    layers, updates = grids_of_tensors(rows, "norm", "the norm")
    assert layers.title == "the norm: by layer, at update 2"
    assert (layers.rows, layers.columns) == (["layers/w", "b"], ["0", "1", "2"])
    np.testing.assert_array_equal(layers.values, [[2, 2, 3], [7, np.nan, np.nan]])
    assert updates.columns == ["1", "2"]
    np.testing.assert_allclose(updates.values, [[2, 7 / 3], [7, 7]])
    assert grids_of_tensors(rows, "other", "") == []


def test_a_cell_without_a_number_is_left_out_and_numbers_are_written() -> None:
    plot = draw_grid(Grid("x", ["a", "b"], ["0", "1"], np.array([[0.5, np.nan], [1, 2]])))
    data = plot.renderers[0].data_source.data
    assert list(zip(data["row"], data["column"], data["text"], strict=True)) == [
        ("a", "0", "0.5"),
        ("b", "0", "1"),
        ("b", "1", "2"),
    ]
    assert list(plot.y_range.factors) == ["b", "a"]  # The first row is at the top.
