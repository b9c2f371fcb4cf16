"""config.json says to every version of transformers, and to others, what the model is."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.hf.model_config import config_json
from train.hf.save import save_params
from train.model import ModelConfig, forward

Family = Callable[..., dict[str, Any]]
TOKENS = np.random.default_rng(0).integers(0, 96, (2, 24)).astype(np.int32)
# Prints the logits of each folder's model with the transformers of the interpreter that runs it.
READER = """
import json, sys
import numpy, torch, transformers
from transformers import AutoModelForCausalLM
old = tuple(map(int, transformers.__version__.split(".")[:2])) < (4, 51)
tokens = torch.tensor(numpy.load(sys.argv[1]), dtype=torch.int64)
for folder in sys.argv[2:]:
    config = json.load(open(folder + "/config.json"))
    if old and (config["model_type"] == "qwen3" or config.get("use_sliding_window")):
        continue  # It has no qwen3, and qwen2's windows with flash attention alone.
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float()
    with torch.no_grad():
        numpy.save(folder + "/logits.npy", model(tokens).logits.numpy())
"""
FAMILIES = ["llama", "llama-tied", "llama-head-dim", "llama-biases", "llama-rope-4", "llama-rope-5"]
FAMILIES += ["llama-linear", "mistral", "mistral-full", "qwen2", "qwen2-window", "qwen3"]


def _config(family: Family, name: str) -> ModelConfig:
    """A model whose base is not any reader's default, and written as transformers 5 does."""
    given = family(name)
    if "rope_scaling" not in given and "rope_parameters" not in given:
        given["rope_parameters"] = {"rope_type": "default", "rope_theta": 500.0}
    return ModelConfig.from_hf(given)


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_left_to_a_readers_defaults(family: Family, name: str) -> None:
    config = _config(family, name)
    content = config_json(config, "float32")
    assert ModelConfig.from_hf(content) == config
    # A reader that knows one form alone, old or new, reads the same model.
    old = {key: value for key, value in content.items() if key not in ("rope_parameters", "dtype")}
    new = {key: v for key, v in content.items() if key not in ("rope_theta", "rope_scaling")}
    assert ModelConfig.from_hf(old) == ModelConfig.from_hf(new) == config
    assert content["torch_dtype"] == content["dtype"] == "float32"
    scaling = content["rope_scaling"]
    assert scaling is None or scaling["type"] == scaling["rope_type"] == config.rope.kind
    # llama.cpp's converter takes this one from beside the other settings.
    length = content.get("original_max_position_embeddings")
    assert length == (config.rope.original_length if config.rope.kind == "llama3" else None)
    assert content["architectures"][0].lower() == f"{config.model_type}forcausallm"


def test_keys_that_are_not_the_architectures_stay(family: Family) -> None:
    given = family("llama", transformers_version="4.46.0", my_note="kept")
    content = config_json(ModelConfig.from_hf(given), "bfloat16")
    assert (content["my_note"], content["transformers_version"]) == ("kept", "4.46.0")


def _check_logits(
    python: str, family: Family, random_params: Any, names: list[str], tmp_path: Path
) -> float:
    """The largest difference of a logit from ours, of models that another interpreter reads."""
    np.save(tmp_path / "tokens.npy", TOKENS)
    expected = {}
    for name in names:
        config = _config(family, name)
        params = random_params(config)
        (tmp_path / name).mkdir()
        save_params(params, config, tmp_path / name, "float32")
        expected[name] = np.asarray(forward(config, params, TOKENS))
    folders = [str(tmp_path / name) for name in names]
    command = [python, "-c", READER, str(tmp_path / "tokens.npy"), *folders]
    subprocess.run(command, check=True, capture_output=True, text=True)
    files = {name: tmp_path / name / "logits.npy" for name in names}
    read = {name: np.load(file) for name, file in files.items() if file.exists()}
    assert read.keys() >= {*names} - {"qwen3", "qwen2-window"}
    differences = {name: float(np.abs(read[name] - expected[name]).max()) for name in read}
    print(python, differences)
    return max(differences.values())


@pytest.mark.slow
def test_this_transformers_computes_the_same_logits(
    family: Family, random_params: Any, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    assert _check_logits(sys.executable, family, random_params, FAMILIES, tmp_path) < 1e-4


@pytest.mark.slow
def test_transformers_4_computes_the_same_logits(
    family: Family, random_params: Any, tmp_path: Path
) -> None:
    """GMT_JAX_TRANSFORMERS4 names interpreters that have it, separated by colons."""
    interpreters = os.environ.get("GMT_JAX_TRANSFORMERS4")
    if not interpreters:
        pytest.skip("GMT_JAX_TRANSFORMERS4 names no interpreter with transformers 4")
    for index, python in enumerate(interpreters.split(os.pathsep)):
        folder = tmp_path / str(index)
        folder.mkdir()
        assert _check_logits(python, family, random_params, FAMILIES, folder) < 1e-4


def test_a_folder_has_that_config(family: Family, random_params: Any, tmp_path: Path) -> None:
    config = _config(family, "llama-tied")
    save_params(random_params(config), config, tmp_path, "bfloat16")
    content = json.loads((tmp_path / "config.json").read_text())
    assert content == config_json(config, "bfloat16")
