"""Each kind of mask takes the keys of the library's function of its name, and calls it."""

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax
import pytest
from pydantic import ValidationError

import gmt_jax
from train.config.faults import sections_of
from train.config.masks import GmtMask, NoMask
from train.config.optimizer import OptimizerSection
from train.errors import UserError

ROOT = Path(__file__).parents[3]
COMMON = {"mask_ratio": 0.2, "scope": "tensor", "tolerance": 0.0, "report": False}
BOTH = COMMON | {"apply_to": "both"}
# The keys of a section; what the library's function is called with, beside the optimizer.
CALLS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"kind": "gmt", "apply_to": "update"}, BOTH | {"apply_to": "update"}),
    ({"kind": "random_mask"}, BOTH | {"every": 1, "key": 7}),
    ({"kind": "one_off", "mask_ratio": 0.9}, BOTH | {"mask_ratio": 0.9, "warmup": 0}),
    ({"kind": "every_few", "every": 5}, BOTH | {"every": 5}),
    ({"kind": "gradient_to_weight", "every": 2, "warmup": 1}, BOTH | {"every": 2, "warmup": 1}),
    ({"kind": "magnitude", "report": True}, BOTH | {"every": None, "report": True}),
    ({"kind": "fisher", "warmup": 3}, BOTH | {"every": None, "warmup": 3, "scope": "global"}),
    ({"kind": "hft", "every": 2}, {"every": 2, "key": 7, "apply_to": "both", "report": False}),
    (
        {"kind": "lisa", "every": 2, "num_layers": 1, "apply_to": "gradient"},
        {"every": 2, "num_layers": 1, "key": 7, "apply_to": "gradient", "report": False},
    ),
]  # fmt: skip


def _mask(**keys: Any) -> Any:
    return OptimizerSection.model_validate({"mask": keys}).mask


def _stacked_axes(path: Any) -> None:
    return None


def _arguments(monkeypatch: pytest.MonkeyPatch, name: str, mask: Any) -> dict[str, Any]:
    """What building the mask calls the library's function of that name with."""
    inner, calls = optax.sgd(1.0), []
    function = getattr(gmt_jax, name)

    def record(inner: Any, **arguments: Any) -> Any:
        calls.append(arguments)
        return function(inner, **arguments)

    monkeypatch.setattr(gmt_jax, name, record)
    mask.build(inner, 3, key=7, stacked_axes=_stacked_axes)
    (arguments,) = calls
    return arguments


def test_the_kinds_are_functions_of_the_library() -> None:
    kinds = [
        get_args(section.model_fields["kind"].annotation)[0]
        for section in sections_of(OptimizerSection.model_fields["mask"].annotation)
    ]
    assert {"gmt_mask", *(keys["kind"] for keys, _ in CALLS), "none"} <= set(kinds)


@pytest.mark.parametrize(("keys", "expected"), CALLS, ids=lambda keys: keys.get("kind", ""))
def test_a_kind_calls_its_function_with_its_keys(
    monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], expected: dict[str, Any]
) -> None:
    arguments = _arguments(monkeypatch, keys["kind"], _mask(**keys))
    if expected.get("scope") != "global":
        expected = expected | {"stacked_axes": _stacked_axes}
    assert arguments == expected


def test_the_default_masks_the_gradient_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = _mask(mask_ratio=0.3)
    assert mask == GmtMask(mask_ratio=0.3)
    arguments = _arguments(monkeypatch, "gmt", mask)
    expected = COMMON | {"mask_ratio": 0.3, "apply_to": "gradient"}
    assert arguments == expected | {"stacked_axes": _stacked_axes}


def test_no_mask_leaves_the_optimizer_as_it_is() -> None:
    inner = optax.sgd(1.0)
    assert NoMask(kind="none").build(inner, 3, 7, _stacked_axes) is inner


def test_ratios_differ_by_path_and_move_over_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = _mask(kind="gmt", mask_ratio=0.0, final_mask_ratio=0.5, mask_ratios={"head": 0.25})
    ratios = _arguments(monkeypatch, "gmt", mask)["mask_ratio"]
    assert list(ratios) == ["head", ".*"]
    assert ratios["head"] == 0.25
    assert [float(ratios[".*"](step)) for step in range(3)] == [0.0, 0.25, 0.5]


def test_a_ratio_for_all_paths_is_not_replaced_by_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mask = _mask(kind="one_off", mask_ratios={"norm": 0.0, ".*": 0.9})
    assert _arguments(monkeypatch, "one_off", mask)["mask_ratio"] == {"norm": 0.0, ".*": 0.9}
    assert mask.ratios == {"norm": 0.0, ".*": 0.9}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "one_off", "final_mask_ratio": 0.5}, "final_mask_ratio"),
        ({"kind": "magnitude", "final_mask_ratio": 0.5}, "no effect on a mask that stays"),
        ({"kind": "gmt_mask", "apply_to": "both"}, "apply_to"),
        ({"kind": "none", "mask_ratio": 0.2}, "mask_ratio"),
        ({"kind": "hft", "every": 2, "scope": "tensor"}, "scope"),
        ({"kind": "fisher"}, "warmup"),
        ({"kind": "fisher", "warmup": 1, "mask_ratios": {"a": 0}}, "scope global has one"),
    ],
)
def test_keys_without_effect_and_missing_keys_are_refused(
    keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        _mask(**keys)


def test_a_mask_that_does_not_fit_the_model_is_refused() -> None:
    mask = _mask(kind="lisa", every=2, num_layers=3)
    optimizer = mask.build(optax.sgd(1.0), 3, key=7, stacked_axes=_stacked_axes)
    params = {"layers": {"attn": {name: jnp.zeros((2, 4, 4)) for name in ("q", "k", "v", "o")}}}
    with pytest.raises(UserError, match=r"optimizer\.mask: cannot train 3 of 2 layers"):
        jax.eval_shape(optimizer.init, params)


def test_a_config_is_read_without_jax() -> None:
    script = (
        "import sys; from pathlib import Path; from train.config import load_config;"
        "load_config(Path('configs/one-off.yaml')); sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
