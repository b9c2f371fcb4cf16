"""Masks of one's own in files: bits, bools and deltas, sharded, and files that are none."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gmt_jax.compact import Frozen, Rows, Slots, num_slots
from train.errors import UserError
from train.hf.delta import extract
from train.hf.mask import check_mask, load_mask, mask_forms, save_mask
from train.hf.save import save_params
from train.model import ModelConfig, abstract_params, logical_axes
from train.sharding import make_mesh, param_shardings

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def model(family: Any) -> ModelConfig:
    return ModelConfig.from_hf(family("llama"))


def _shardings(model: ModelConfig) -> Any:
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    return param_shardings(mesh, abstract_params(model), logical_axes(model))


def _random(model: ModelConfig) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.random(leaf.shape) > 0.7, abstract_params(model))


@pytest.mark.parametrize("form", ["bits", "bools"])
def test_a_mask_that_was_written_is_read_into_shards(
    model: ModelConfig, tmp_path: Path, form: str
) -> None:
    mask, file = _random(model), tmp_path / "mask.safetensors"
    save_mask(mask, model, file)
    if form == "bools":
        stored = load_file(file)
        stored[NAME] = mask["layers"]["mlp"]["up"]["weight"][1]
        save_file(stored, file)
    shardings = _shardings(model)
    check_mask(file, model)
    loaded = load_mask(file, model, shardings)
    jax.tree.map(np.testing.assert_array_equal, loaded, mask)
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == shardings


def test_tensors_that_the_file_does_not_hold_are_not_trained(
    model: ModelConfig, tmp_path: Path
) -> None:
    rows = np.zeros((96, 32), bool)
    rows[[3, 5]] = True
    save_file({"model.embed_tokens.weight": rows}, tmp_path / "rows.safetensors")
    loaded = load_mask(tmp_path / "rows.safetensors", model, _shardings(model))
    np.testing.assert_array_equal(loaded.pop("embed"), rows)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(loaded))


def test_a_delta_is_the_mask_of_what_it_changes(
    model: ModelConfig, random_params: Any, tmp_path: Path
) -> None:
    mask, base = _random(model), random_params(model)
    tuned = jax.tree.map(lambda w, m: np.where(m, w + 1, w), base, mask)
    for name, params in (("base", base), ("tuned", tuned)):
        (tmp_path / name).mkdir()
        save_params(params, model, tmp_path / name, "float32")
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "d.safetensors")
    loaded = load_mask(tmp_path / "d.safetensors", model, _shardings(model))
    jax.tree.map(np.testing.assert_array_equal, loaded, mask)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"w": np.ones(3, bool)}, "unknown: w"),
        ({NAME: np.ones((3, 4), bool)}, r"of shape \[3, 4\] instead of \[48, 32\]: " + NAME),
        ({NAME: np.ones((48, 32), np.float32)}, "of type F32 instead of bools"),
        ({"lm_head.rotary_emb.inv_freq": np.ones(2)}, "no tensor of the model"),
    ],
)
def test_files_that_hold_no_mask_of_the_model_are_refused(
    model: ModelConfig, tmp_path: Path, tensors: dict[str, Any], message: str
) -> None:
    file = tmp_path / "mask.safetensors"
    save_file(tensors, file)
    with pytest.raises(UserError, match=message):
        check_mask(file, model)


def test_a_file_that_is_not_there_is_refused(model: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.safetensors"):
        check_mask(tmp_path / "none.safetensors", model)


def test_the_slots_of_a_mask_are_counted_and_too_many_are_refused(
    model: ModelConfig, tmp_path: Path
) -> None:
    file = tmp_path / "mask.safetensors"
    mask, rows = np.zeros((48, 32), bool), np.zeros((96, 32), bool)
    mask[3, :5], rows[[3, 5]] = True, True
    save_file({NAME: mask, "model.embed_tokens.weight": rows}, file)
    forms = mask_forms(file, model, slots=5)
    up = forms["layers"]["mlp"]["up"]["weight"]
    assert (up.kind, num_slots(up), forms["embed"].kind) == (Slots, 5, Rows)
    assert forms["layers"]["mlp"]["down"]["weight"].kind is Frozen
    message = r"more than 4 of 128 entries in a row: model\.layers\.\*\.mlp\.up_proj\.weight has 5;"
    with pytest.raises(UserError, match=message):
        mask_forms(file, model, slots=4)
