"""Charts of a run for a terminal: curves, and a heat map of the mask by layer and matrix."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from ..best import find_eval_figures

_CHART_WIDTH, _CHART_HEIGHT = 36, 6  # Characters of the smallest chart, and of all.
_LABEL_WIDTH = 8  # Characters of a number on an axis.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # Of a braille character, by column.
_LEVELS = "▁▂▃▄▅▆▇█"  # Told apart without colour.
_COLOURS = ("#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#9fda3a", "#d0e11c", "#fde725")
# Figures by tensor for the heat map: the first that differs between tensors is shown.
_FIGURES = ("mask/masked", "mask/overlap", "mask/norm_kept", "mask/ever_kept")

Figures = Mapping[str, Mapping[str, Any]]


class View:
    """What a run has shown so far; rendered to the size that the terminal has then."""

    def __init__(self) -> None:
        self._curves: dict[str, list[tuple[int, float]]] = {}
        self._tensors: Figures = {}
        self._step = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Takes a record into account."""
        names = [name for name in find_eval_figures(record) if name.endswith("loss")]
        for name in ["loss", *names]:
            if math.isfinite(record.get(name, math.nan)):
                self._curves.setdefault(name, []).append((record["step"], record[name]))
        if "tensors" in record:
            self._tensors, self._step = record["tensors"], record["step"]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = console.size.height
        if options.ascii_only or height < 20 or options.max_width < _CHART_WIDTH:
            return
        names = sorted(self._curves, key=lambda name: name != "loss")
        curves = {name: self._curves[name] for name in names if len(self._curves[name]) > 1}
        if curves:
            yield from _side_by_side(curves, options.max_width)
        yield from _heat_map(self._tensors, self._step, options.max_width, height - 15)


def _side_by_side(
    curves: Mapping[str, Sequence[tuple[int, float]]], width: int
) -> Iterator[Segment]:
    """As many charts as there is room for, the loss first."""
    names = list(curves)[: max(1, width // _CHART_WIDTH)]
    each = width // len(names)
    charts = [plot(name.replace("_", " "), curves[name], each, _CHART_HEIGHT) for name in names]
    for lines in zip(*charts, strict=True):
        yield Segment("".join(line.ljust(each) for line in lines).rstrip())
        yield Segment.line()


def plot(title: str, points: Sequence[tuple[int, float]], width: int, height: int) -> list[str]:
    """A curve in braille characters, with its range at the left and its steps below.

    Args:
      points: steps and finite values.
      width: of the lines, in characters.
      height: of the curve, in lines; the title and the steps take two more.
    """
    columns = width - _LABEL_WIDTH - 2
    steps, values = (np.array(part, float) for part in zip(*points, strict=True))
    if len(values) > 2 * columns:  # Means of pieces, which are as many as there are dots.
        steps, values = (
            np.array([piece.mean() for piece in np.array_split(part, 2 * columns)])
            for part in (steps, values)
        )
    at = np.interp(np.linspace(steps[0], steps[-1], 2 * columns), steps, values)
    low, high = at.min(), at.max()
    scale = (4 * height - 1) / (high - low) if high > low else 0.0
    rows = np.rint((high - at) * scale).astype(int)
    cells = np.zeros((height, columns), int)
    for column, (before, row) in enumerate(zip([rows[0], *rows[:-1]], rows, strict=True)):
        # From the neighbour's height, so that a steep curve has no gaps.
        first, last = sorted((before + np.sign(row - before), row))
        for dot in range(first, last + 1):
            cells[dot // 4, column // 2] |= _DOTS[column % 2][dot % 4]
    labels = [_number(high), *[""] * (height - 2), _number(low)] if height > 1 else [_number(high)]
    curve = [
        f"{label:>{_LABEL_WIDTH}} " + "".join(chr(0x2800 + cell) for cell in line)
        for label, line in zip(labels, cells, strict=True)
    ]
    first, last = f"{points[0][0]:,}", f"{points[-1][0]:,}"
    axis = " " * (_LABEL_WIDTH + 1) + first + last.rjust(columns - len(first))
    return [" " * (_LABEL_WIDTH + 1) + f"{title} {_number(points[-1][1])}", *curve, axis]


def _number(value: float) -> str:
    return f"{value:.4g}"


def _heat_map(tensors: Figures, step: int, width: int, height: int) -> Iterator[Any]:
    """A figure of each matrix, by layer; nothing without such figures or room.

    Levels of a figure that is no share are those of its logarithm.
    """
    found = _choose(tensors)
    if found is None:
        return
    title, by_path = found
    rows = {
        path.removeprefix("layers/").removesuffix("/weight"): np.array(values, float)
        for path, values in _by_layer(by_path).items()
    }
    if not rows or len(rows) > height:
        return
    finite = np.concatenate([values[np.isfinite(values)] for values in rows.values()])
    if not finite.size:
        return
    low, high = float(finite.min()), float(finite.max())
    is_share = title.startswith("mask")
    label = max(map(len, rows))
    scale = f"{_LEVELS[0]} {_number(low)} to {_LEVELS[-1]} {_number(high)}"
    yield Text(f"{title} by layer, step {step:,}   {scale}", overflow="crop", no_wrap=True)
    for name, values in rows.items():
        line = Text(f"{name:>{label}} ", overflow="crop", no_wrap=True)
        for value in _fit(values, width - label - 1):
            line.append(*_shade(value, low, high, is_share))
        yield line


def _choose(tensors: Figures) -> tuple[str, Mapping[str, Any]] | None:
    """The figure to show, with its title."""
    for name in _FIGURES:
        values = [x for part in _by_layer(tensors.get(name, {})).values() for x in part]
        if values and max(values) - min(values) > 1e-3:
            return name.replace("mask/", "mask: ").replace("_", " "), tensors[name]
    if {"update_norm", "weight_norm"} <= tensors.keys():
        updates, weights = tensors["update_norm"], tensors["weight_norm"]
        ratio = {
            path: (np.array(updates[path]) / np.maximum(weights[path], 1e-30)).tolist()
            for path in updates
        }
        return "norm of update / norm of weights", ratio
    return None


def _by_layer(by_path: Mapping[str, Any]) -> dict[str, list[float]]:
    """The figures that have a value for each layer."""
    return {
        path: values
        for path, values in by_path.items()
        if isinstance(values, list) and values and isinstance(values[0], float)
    }


def _fit(values: np.ndarray, width: int) -> np.ndarray:
    """As many values as fit, each in as many characters as there are; means where they do not."""
    if len(values) > width:
        return np.array([piece.mean() for piece in np.array_split(values, max(width, 1))])
    return np.repeat(values, min(max(width // len(values), 1), 3))


def _shade(value: float, low: float, high: float, is_share: bool) -> tuple[str, Style]:
    if not math.isfinite(value):
        return "?", Style()
    if not is_share:
        value, low, high = (math.log(max(x, 1e-30)) for x in (value, low, high))
    share = (value - low) / (high - low) if high > low else 1.0
    level = min(int(share * len(_LEVELS)), len(_LEVELS) - 1)
    return _LEVELS[level], Style(color=_COLOURS[level])
