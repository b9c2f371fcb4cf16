"""Puts the parts of a report together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from bokeh.embed import components
from bokeh.resources import Resources
from markupsafe import Markup

from ...config import Config
from ...errors import UserError
from ...files import atomic_file
from ...run import Run
from ..privacy import redact
from . import charts, contents
from .changes import grids

# The figures of tensors that are shown, and what they are: the mask's where it is reported.
_MASK_FIGURES = {
    "mask/masked": "masked share",
    "mask/norm_kept": "kept share of the gradient's norm",
    "mask/overlap": "overlap with the mask recorded before",
    "mask/ever_kept": "share of entries that any recorded mask kept",
    "grad_norm": "norm of the gradient",
    "update_norm": "norm of the update",
}


@dataclass
class _Part:
    """A run in the page.

    Attributes:
      plots: by the place in the page that they are for.
    """

    name: str
    settings: str
    machine: str
    samples: list[contents.Sample]
    examples: list[contents.Marked]
    changes_note: str
    plots: dict[str, list[Any]]


def write_report(
    folders: Sequence[Path],
    out: Path,
    num_examples: int = 3,
    dropped: Sequence[Sequence[contents.Record]] = (),
) -> None:
    """Writes the report of one or several runs as one HTML file.

    Args:
      folders: the runs'.
      out: the file; one that is there is replaced.
      num_examples: how many training examples are shown.
      dropped: for each run, the losses after part of its changes is dropped, if they are known.

    Raises:
      UserError: if a folder is not a run, or `out` cannot be written.
    """
    runs = {name: Run.open(folder) for name, folder in _names(folders).items()}
    configs = {name: run.config() for name, run in runs.items()}
    records = {name: run.records for name, run in runs.items()}
    parts = [
        _part(name, run, configs[name], records[name], num_examples) for name, run in runs.items()
    ]
    for part, rows in zip(parts, dropped, strict=bool(dropped)):
        part.plots["dropped"] = charts.draw_delta_drop(part.name, rows)
    summaries = [contents.summarise(configs[name], records[name]) for name in runs]
    labels = list(dict.fromkeys(label for summary in summaries for label in summary))
    curves = [charts.draw_curves(*chart) for chart in charts.curves(records).items()]
    page = {
        "several": len(runs) > 1,
        "title": f"gmt-train report: {', '.join(runs)}",
        "summary": [(label, [s.get(label, "") for s in summaries]) for label in labels],
        "differing": contents.find_differences([*configs.values()]),
    }
    with atomic_file(out) as file:
        file.write_text(_render(page, parts, curves), encoding="utf-8")


def _names(folders: Sequence[Path]) -> dict[str, Path]:
    """The runs' names: the last parts of their paths, or all where those are equal."""
    names = [Run(folder).name for folder in folders]
    unique = len(set(names)) == len(names)
    found = {
        name if unique else str(folder): folder for name, folder in zip(names, folders, strict=True)
    }
    if len(found) < len(folders):
        raise UserError("the same run is named twice; name each once")
    return found


def _part(
    name: str, run: Run, config: Config, records: Sequence[contents.Record], num_examples: int
) -> _Part:
    changes, note = contents.weight_changes(run, config)
    tensors = run.tensors
    figures = [
        grid
        for figure, title in _MASK_FIGURES.items()
        for grid in charts.grids_of_tensors(tensors, figure, title)
    ]
    settings = redact(config.model_dump(mode="json"))  # By key, which a text does not show.
    return _Part(
        name,
        yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        contents.describe_machine(records),
        contents.find_samples(run),
        contents.find_examples(run, config, num_examples) if num_examples else [],
        note,
        {
            "mask": [charts.draw_grid(grid) for grid in figures],
            "changes": [charts.draw_grid(grid) for grid in grids(changes)] if changes else [],
            "dropped": [],
        },
    )


def _render(page: dict[str, Any], parts: Sequence[_Part], curves: Sequence[Any]) -> str:
    """The page; all that comes from a run is escaped."""
    plots = [*curves, *(plot for part in parts for of in part.plots.values() for plot in of)]
    script, divs = components(tuple(plots)) if plots else ("", ())
    left = iter([Markup(div) for div in divs])
    page |= {"curves": [next(left) for _ in curves], "runs": parts}
    page["plots"] = [
        {place: [next(left) for _ in of] for place, of in p.plots.items()} for p in parts
    ]
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    resources = Markup(Resources(mode="inline", components=["bokeh"], log_level="error").render())
    return environment.from_string(template).render(
        page, script=Markup(script), resources=resources
    )
