import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from train.errors import UserError
from train.hf.load import load_params
from train.hf.save import save_params
from train.model import ModelConfig, abstract_params, load_model_config, logical_axes
from train.sharding import make_mesh, param_shardings

Saved = tuple[Path, ModelConfig, Any]


def test_several_files_have_an_index_and_load_again(saved: Saved, tmp_path: Path) -> None:
    _, config, params = saved
    save_params(params, config, tmp_path, "float32", max_file_bytes=30_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert [f.name for f in files] == sorted(set(index["weight_map"].values()))
    assert all(f.stat().st_size < 30_000 + 4_000 for f in files)  # A header on top.
    assert index["metadata"]["total_size"] == 4 * sum(x.size for x in jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path, config), params)


def test_bfloat16_rounds_and_the_config_says_so(saved: Saved, tmp_path: Path) -> None:
    _, config, params = saved
    save_params(params, config, tmp_path)
    rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params)
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path, config), rounded)
    hf = json.loads((tmp_path / "config.json").read_text())
    assert hf["dtype"] == hf["torch_dtype"] == "bfloat16"
    assert load_model_config(tmp_path) == config
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_slice("model.norm.weight").get_dtype() == "BF16"


def test_a_mesh_saves_the_same_bytes(saved: Saved, tmp_path: Path) -> None:
    folder, config, params = saved
    shardings = param_shardings(make_mesh(2, 2, 2), abstract_params(config), logical_axes(config))
    save_params(jax.device_put(params, shardings), config, tmp_path, "float32")
    file = "model.safetensors"
    assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()


def test_weights_that_lie_there_are_not_replaced(saved: Saved) -> None:
    folder, config, params = saved
    with pytest.raises(UserError, match="holds weights already"):
        save_params(params, config, folder)


def test_what_the_base_holds_beside_its_weights_is_kept(
    family: Any, random_params: Any, tmp_path: Path
) -> None:
    """The head of tied embeddings, and a buffer of old exports."""
    config = ModelConfig.from_hf(family("llama-tied"))
    params = random_params(config)
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    save_params(params, config, base, "bfloat16")
    tensors = load_file(base / "model.safetensors")
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors[buffer] = np.arange(4, dtype=np.float32)
    save_file(tensors, base / "model.safetensors")
    tuned = jax.tree.map(lambda x: 2 * x, params)
    save_params(tuned, config, out, "bfloat16", base=base)
    written = load_file(out / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert written[buffer].tobytes() == tensors[buffer].tobytes()
    doubled = 2 * tensors["lm_head.weight"].astype(np.float32)
    np.testing.assert_array_equal(written["lm_head.weight"].astype(np.float32), doubled)
    assert load_params(out, config).keys() == params.keys()
