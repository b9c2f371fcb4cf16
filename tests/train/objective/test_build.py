"""Each kind of objective of the config is built with its own arguments."""

import inspect
from typing import Any, get_args

import pytest

from train.config.objectives import ObjectiveSection, Sft
from train.model import FLOAT32
from train.objective import preference_losses, sft
from train.objective.build import make_objective
from train.objective.preference import Preference

KINDS = [kind for kind in get_args(get_args(ObjectiveSection)[0]) if kind is not Sft]
MODEL: Any = None  # No objective looks at it before it is called.


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_preference_is_its_function_with_the_sections_keys(kind: Any) -> None:
    name = get_args(kind.model_fields["kind"].annotation)[0]
    settings = {"label_smoothing": 0.125} if name == "robust_dpo" else {}
    objective: Any = make_objective(kind(kind=name, **settings), MODEL, FLOAT32)
    assert isinstance(objective, Preference)
    assert objective.loss.func is getattr(preference_losses, name)
    parameters = inspect.signature(objective.loss.func).parameters
    assert set(objective.loss.keywords) == set(parameters) - {"pairs"}


def test_the_supervised_term_is_the_objectives() -> None:
    section = KINDS[0](kind="dpo", sft_weight=0.5)
    objective = make_objective(section, MODEL, FLOAT32)
    assert isinstance(objective, Preference)
    assert objective.sft_weight == 0.5


def test_supervised_fine_tuning_is_the_default() -> None:
    assert isinstance(make_objective(Sft(), MODEL, FLOAT32), sft.Sft)
