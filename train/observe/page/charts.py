"""Charts of runs' records: curves over each other, and figures of tensors by layer and matrix."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, LinearColorMapper
from bokeh.palettes import Viridis256
from bokeh.plotting import figure

Record: TypeAlias = Mapping[str, Any]

# Okabe and Ito's colours, which those who see few colours can tell apart; dashes tell them too.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES = ("solid", "dashed", "dotted", "dotdash", "dashdot")
_INK = "#7a7a7a"  # Read on white and on black.
_MOST_POINTS = 1000  # Of a curve, and of a heat map's columns; more are thinned out.
_MOST_COLUMNS = 60
_FEW_POINTS = 12  # Of a curve whose points are drawn.
_FIRST = ("loss", "token_accuracy", "accuracy", "rewards/margin", "masked_fraction", "grad_norm")
_LEFT_OUT = re.compile(r"step|seconds_left|num_\w+|finite|skipped")


class Curve(NamedTuple):
    """A figure of a run over its updates."""

    run: str
    name: str
    steps: list[Any]
    values: list[float]


def curves(records: Mapping[str, Sequence[Record]]) -> dict[str, list[Curve]]:
    """The curves of each chart, by its name; what belongs together, as loss and eval_loss, does.

    Args:
      records: those of each run, by its name.
    """
    found: dict[tuple[str, str], Curve] = {}
    for run, rows in records.items():
        for row in rows:
            for name, value in row.items():
                if not isinstance(value, int | float) or _LEFT_OUT.fullmatch(name):
                    continue
                curve = found.setdefault((run, name), Curve(run, name, [], []))
                curve.steps.append(row["step"])
                curve.values.append(float(value))
    trained = sorted((name for _, name in found if not name.startswith("eval_")), key=len)
    charts: dict[str, list[Curve]] = {}
    for (_, name), curve in found.items():
        charts.setdefault(_chart_of(name, trained), []).append(curve)
    order = [name for name in _FIRST if name in charts]
    return {name: charts[name] for name in [*order, *sorted(charts.keys() - {*order})]}


def _chart_of(name: str, trained: Sequence[str]) -> str:
    """The longest figure of training whose counterpart in evaluation this is, or itself."""
    if not name.startswith("eval_"):
        return name
    parts = [other for other in trained if name.endswith(f"_{other}")]
    return parts[-1] if parts else name.removeprefix("eval_")


def draw_curves(name: str, lines: Sequence[Curve], axis: str = "updates") -> Any:
    """A chart of curves over an axis; those of evaluations, and short ones, have points."""
    plot = _figure(name.replace("_", " "))
    plot.xaxis.axis_label = axis
    runs = list(dict.fromkeys(line.run for line in lines))
    for number, line in enumerate(lines):
        at = runs.index(line.run)
        colour, dash = _COLOURS[at % len(_COLOURS)], _DASHES[number % len(_DASHES)]
        label = line.name.replace("_", " ") if len(runs) == 1 else f"{line.run}: {line.name}"
        kept = np.unique(np.linspace(0, len(line.steps) - 1, _MOST_POINTS).round().astype(int))
        source = ColumnDataSource(
            {
                "step": np.array(line.steps)[kept],
                "value": np.array(line.values)[kept],
                "label": [label] * len(kept),
            }
        )
        drawn = {"source": source, "color": colour, "legend_label": label}
        plot.line("step", "value", line_dash=dash, line_width=2, **drawn)
        if line.name.startswith("eval_") or len(kept) < _FEW_POINTS:
            plot.scatter("step", "value", size=6, **drawn)
    plot.add_tools(HoverTool(tooltips=[("", "@label"), (axis, "@step"), ("", "@value{0.0000}")]))
    if len(lines) == 1:
        plot.legend.visible = False
        return plot
    legend = plot.legend[0]
    plot.add_layout(legend, "above")
    legend.orientation, legend.ncols, legend.click_policy = "horizontal", 2, "hide"
    legend.label_text_color, legend.background_fill_alpha = _INK, 0
    legend.border_line_alpha = 0
    return plot


def draw_delta_drop(run: str, rows: Sequence[Record]) -> list[Any]:
    """A chart for each loss: after the smallest or random changes were dropped.

    Args:
      rows: as from `delta_drop`.
    """
    shares = [row["dropped"] for row in rows]
    names = [name.removeprefix("smallest_") for name in rows[0] if name.startswith("smallest_")]
    charts = []
    for name in names:
        kinds = {kind: [row[f"{kind}_{name}"] for row in rows] for kind in ("smallest", "random")}
        lines = [Curve(run, f"{kind} dropped", shares, values) for kind, values in kinds.items()]
        charts.append(draw_curves(name, lines, "share of the changes"))
    return charts


class Grid(NamedTuple):
    """A number for each row and column; NaN where there is none.

    Attributes:
      title: what the numbers are.
      rows, columns: their names, from the top and from the left.
      values: [rows, columns].
    """

    title: str
    rows: list[str]
    columns: list[str]
    values: np.ndarray


def draw_grid(grid: Grid) -> Any:
    """A heat map, with each number in it if they are few, so that it is read without colour."""
    plot = _figure(
        grid.title,
        height=110 + 22 * len(grid.rows),
        x_range=grid.columns,
        y_range=grid.rows[::-1],
    )
    row, col = (index.ravel() for index in np.indices(grid.values.shape))
    values = grid.values.ravel()
    shown = np.isfinite(values)
    low, high = (values[shown].min(), values[shown].max()) if shown.any() else (0.0, 1.0)
    data = {
        "row": np.array(grid.rows)[row[shown]],
        "column": np.array(grid.columns)[col[shown]],
        "value": values[shown],
        "text": [f"{value:.3g}" for value in values[shown]],
        "ink": ["#ffffff" if v < (low + high) / 2 else "#000000" for v in values[shown]],
    }
    source = ColumnDataSource(data)
    mapper = LinearColorMapper(palette=Viridis256, low=low, high=high if high > low else low + 1)
    colour = {"field": "value", "transform": mapper}
    cells = plot.rect("column", "row", 1, 1, source=source, fill_color=colour, line_color=None)
    bar = cells.construct_color_bar(width=10, background_fill_alpha=0, major_label_text_color=_INK)
    plot.add_layout(bar, "right")
    if len(grid.columns) <= 12:
        options = {"text_align": "center", "text_baseline": "middle", "text_font_size": "10px"}
        plot.text("column", "row", "text", source=source, text_color="ink", **options)
    plot.add_tools(HoverTool(tooltips=[("", "@row, @column"), ("", "@value{0.00000}")]))
    plot.grid.grid_line_color = None
    return plot


def grids_of_tensors(rows: Sequence[Record], name: str, title: str) -> list[Grid]:
    """A figure of every tensor: by matrix and layer at the last update, and by matrix and update.

    Args:
      rows: records with the key `tensors`, in the order of their steps.
      name: the figure's, as in these records.
      title: what the figure is.
    """
    rows = [row for row in rows if name in row["tensors"]]
    if not rows:
        return []
    last = {path: np.atleast_1d(value) for path, value in rows[-1]["tensors"][name].items()}
    matrices = list(last)
    layers = np.full((len(last), max(len(value) for value in last.values())), np.nan)
    for row, value in enumerate(last.values()):
        layers[row, : len(value)] = value
    kept = np.unique(np.linspace(0, len(rows) - 1, _MOST_COLUMNS).round().astype(int))
    shown = [rows[index] for index in kept]
    means = [[np.mean(row["tensors"][name][path]) for row in shown] for path in matrices]
    numbers = [str(layer) for layer in range(layers.shape[1])]
    steps = [f"{row['step']:,}" for row in shown]
    return [
        Grid(f"{title}: by layer, at update {rows[-1]['step']:,}", matrices, numbers, layers),
        Grid(f"{title}: by update, mean of the layers", matrices, steps, np.array(means)),
    ]


def _figure(title: str, height: int = 300, **options: Any) -> Any:
    plot: Any = figure(
        title=title,
        height=height,
        sizing_mode="stretch_width",
        tools="pan,box_zoom,reset,save",
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        **options,
    )
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.title.text_color = _INK
    for axis in (*plot.xaxis, *plot.yaxis):
        axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = _INK
        axis.major_label_text_color = axis.axis_label_text_color = _INK
    plot.grid.grid_line_alpha = 0.3
    return plot
