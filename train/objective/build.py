"""The objective that a config names."""

from functools import partial

from ..config.objectives import ObjectiveSection
from ..model import ComputeOptions, ModelConfig
from ..step import Objective
from . import preference_losses
from .preference import Preference
from .sft import Sft


def make_objective(
    section: ObjectiveSection, model: ModelConfig, options: ComputeOptions
) -> Objective:
    """The objective of a config's section."""
    if not section.is_preference:
        return Sft(model, options)
    loss = partial(getattr(preference_losses, section.kind), **section.arguments())
    return Preference(model, loss, options, getattr(section, "sft_weight", 0.0))
