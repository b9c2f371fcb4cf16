"""The kinds of objective, and what is refused of them in one line."""

from typing import Any

import pytest

from train.config import make_config
from train.errors import UserError

BASE: dict[str, Any] = {"run": "r", "model": {"path": "m"}, "data": {"train": "d"}}


def test_supervised_fine_tuning_is_the_default() -> None:
    objective = make_config(BASE).objective
    assert (objective.kind, objective.is_preference, objective.has_reference) == (
        "sft",
        False,
        False,
    )


@pytest.mark.parametrize(
    ("kind", "has_reference"),
    [("dpo", True), ("hinge", True), ("ipo", True), ("simpo", False), ("orpo", False)],
)
def test_a_kind_says_what_it_needs(kind: str, has_reference: bool) -> None:
    objective = make_config(BASE | {"objective": {"kind": kind}}).objective
    assert (objective.is_preference, objective.has_reference) == (True, has_reference)
    assert "kind" not in objective.arguments()


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"kind": "dpo", "beta": 0}, "objective.beta: input should be greater than 0, got 0"),
        ({"kind": "simpo", "reference": "m"}, "objective.reference has no effect when kind is"),
        ({"kind": "orpo", "sft_weight": 1.0}, "objective.sft_weight has no effect when kind is"),
        ({"beta": 0.1}, "objective.beta has no effect when kind is 'sft'"),
        ({"kind": "robust_dpo"}, "objective.label_smoothing is required when kind is"),
        ({"kind": "dpo", "label_smoothing": 0.5}, "input should be less than 0.5"),
        ({"kind": "dop"}, "unknown kind 'dop'; did you mean 'dpo'"),
    ],
)
def test_what_has_no_meaning_is_refused(objective: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_config(BASE | {"objective": objective})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"streaming": True, "eval_fraction": 0}, "data.streaming is not for objective dpo"),
        ({"loss_on": "everything"}, "data.loss_on everything is not for objective dpo"),
    ],
)
def test_pairs_are_whole(data: dict[str, Any], message: str) -> None:
    tree = BASE | {"steps": 1, "objective": {"kind": "dpo"}, "data": {"train": "d"} | data}
    with pytest.raises(UserError, match=message):
        make_config(tree)
