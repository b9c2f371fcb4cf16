"""Sources → chat rendering and loss masks → batches as a pure function of the step."""

from train.data.batches import Batches, DataReport, Examples, prepare
from train.data.build import build_datasets
from train.data.render import Example, render
from train.data.sources import load_records
from train.data.stdlib import load_stdlib

__all__ = [
    "Batches",
    "DataReport",
    "Example",
    "Examples",
    "build_datasets",
    "load_records",
    "load_stdlib",
    "prepare",
    "render",
]
