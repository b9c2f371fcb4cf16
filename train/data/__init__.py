"""Sources → chat rendering and loss masks → batches as a pure function of the step."""

from train.data.batches import Batches, Examples
from train.data.build import Report, build_examples
from train.data.render import Example, render
from train.data.sources import load_records
from train.data.stdlib import load_stdlib

__all__ = [
    "Batches",
    "Example",
    "Examples",
    "Report",
    "build_examples",
    "load_records",
    "load_stdlib",
    "render",
]
