"""The table of parameters against the trees of all families."""

from typing import Any

import jax

from train.model import ModelConfig, abstract_params
from train.model.param_table import EMBED, HEAD, PARAM_SPECS


def test_names_and_paths_are_unique() -> None:
    names, paths = zip(*((spec.name, spec.path) for spec in PARAM_SPECS), strict=True)
    assert len(set(names)) == len(set(paths)) == len(PARAM_SPECS)
    assert {EMBED, HEAD} <= set(names)


def test_a_spec_is_stacked_if_its_name_has_the_layers_number() -> None:
    for spec in PARAM_SPECS:
        assert spec.stacked == ("{}" in spec.name) == spec.path.startswith("layers/")


def test_every_spec_belongs_to_a_parameter_of_some_family(family: Any) -> None:
    paths = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for name in ("llama-biases", "qwen3-layers")
        for path, _ in jax.tree.leaves_with_path(abstract_params(ModelConfig.from_hf(family(name))))
    }
    assert paths == {spec.path for spec in PARAM_SPECS}
