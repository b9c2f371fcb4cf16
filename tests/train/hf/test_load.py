import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from train.errors import UserError
from train.hf.load import load_params
from train.hf.safetensors import SafetensorsReader
from train.hf.save import save_params
from train.model import ModelConfig, abstract_params, logical_axes
from train.sharding import make_mesh, param_shardings

Saved = tuple[Path, ModelConfig, Any]


def assert_equal(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Changes the tensors of a folder's only file."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def cut(folder: Path, *, index: bool) -> None:
    """Puts a folder's tensors into two files."""
    file = folder / "model.safetensors"
    names = sorted(tensors := load_file(file))
    file.unlink()
    places = {name: f"model-{at % 2}.safetensors" for at, name in enumerate(names)}
    for part in set(places.values()):
        save_file({n: tensors[n] for n in names if places[n] == part}, folder / part)
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_what_was_saved_is_loaded(saved: Saved) -> None:
    folder, config, params = saved
    assert_equal(load_params(folder, config), params)


@pytest.mark.parametrize("index", [True, False])
def test_several_files_are_one_model(index: bool, saved: Saved) -> None:
    folder, config, params = saved
    cut(folder, index=index)
    assert_equal(load_params(folder, config), params)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32(dtype: Any, saved: Saved) -> None:
    folder, config, params = saved
    rewrite(folder, lambda t: t.update({k: v.astype(dtype) for k, v in t.items()}))
    loaded = load_params(folder, config)
    assert_equal(loaded, jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params))
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype("float32")}


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_any_mesh_gets_the_same_weights_and_reads_only_its_shards(
    shape: tuple[int, int, int], saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config, params = saved
    read, largest = SafetensorsReader.read, dict[str, int]()
    total = 0

    def spy(reader: Any, name: str, index: tuple[slice, ...]) -> np.ndarray:
        nonlocal total
        part = read(reader, name, index)
        total += part.size
        largest[name] = max(largest.get(name, 0), part.size)
        return part

    monkeypatch.setattr(SafetensorsReader, "read", spy)
    mesh = make_mesh(*shape)
    shardings = param_shardings(mesh, abstract_params(config), logical_axes(config))
    loaded = load_params(folder, config, shardings)
    assert_equal(loaded, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == shardings
    # Each number is read once, although several devices may hold it, and in shards.
    assert total == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert largest["model.layers.1.mlp.up_proj.weight"] == 48 * 32 // (shape[1] * shape[2])


def test_what_a_host_holds_beside_the_weights_does_not_grow_with_layers(
    family: Any, random_params: Any, tmp_path: Path
) -> None:
    hf = family("llama-tied", hidden_size=128, intermediate_size=512, num_hidden_layers=24)
    config = ModelConfig.from_hf(hf)
    save_params(random_params(config), config, tmp_path, "float32")
    shardings = param_shardings(make_mesh(), abstract_params(config), logical_axes(config))
    load_params(tmp_path, config, shardings)  # Compiles.
    largest = 4 * 128 * 512  # bytes; 24 of them are one parameter.
    tracemalloc.start()
    try:
        params = load_params(tmp_path, config, shardings)
        assert tracemalloc.get_traced_memory()[1] < 4 * largest
        tracemalloc.reset_peak()
        (tmp_path / "out").mkdir()
        save_params(params, config, tmp_path / "out", "float32")
        assert tracemalloc.get_traced_memory()[1] < 4 * largest
    finally:
        tracemalloc.stop()


def test_loaded_weights_may_be_donated(saved: Saved) -> None:
    folder, config, params = saved
    sharding = jax.sharding.NamedSharding(make_mesh(8, 1, 1), jax.sharding.PartitionSpec())
    loaded = load_params(folder, config, jax.tree.map(lambda _: sharding, params))
    more = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)(loaded)
    for leaf, expected in zip(jax.tree.leaves(more), jax.tree.leaves(params), strict=True):
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, expected + 1)


def test_every_fault_of_the_tensors_is_in_one_line(saved: Saved) -> None:
    folder, config, _ = saved

    def spoil(tensors: dict[str, np.ndarray]) -> None:
        for layer in range(3):
            del tensors[f"model.layers.{layer}.mlp.up_proj.bias"]
        del tensors["model.layers.1.self_attn.o_proj.bias"]
        tensors["model.norm.weight"] = np.ones(31, np.float32)
        tensors["lm_head.weight"] = np.ones((96, 32), np.int8)
        tensors["model.layers.3.mlp.up_proj.bias"] = np.ones(48, np.float32)
        tensors["visual.proj"] = np.ones(3, np.float32)

    rewrite(folder, spoil)
    with pytest.raises(UserError) as caught:
        load_params(folder, config)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder}: weights do not match config.json: ")
    for part in (
        "model.layers.{0-2}.mlp.up_proj.bias",
        "model.layers.1.self_attn.o_proj.bias",
        "of shape [31] instead of [32]: model.norm.weight",
        "of unsupported type I8: lm_head.weight",
        "extra: model.layers.3.mlp.up_proj.bias, visual.proj",
    ):
        assert part in message


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_tied_head_may_be_stored_if_it_equals_the_embeddings(
    noise: float, family: Any, random_params: Any, tmp_path: Path
) -> None:
    config = ModelConfig.from_hf(family("llama-tied"))
    params = random_params(config)
    save_params(params, config, tmp_path, "float32")

    def add(tensors: dict[str, np.ndarray]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + np.float32(noise)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    rewrite(tmp_path, add)
    if noise == 0:
        assert_equal(load_params(tmp_path, config), params)
    else:
        with pytest.raises(UserError, match=r"unlike the embeddings: lm_head\.weight"):
            load_params(tmp_path, config)


def test_a_tensor_in_two_files_is_named(saved: Saved) -> None:
    folder, config, _ = saved
    cut(folder, index=False)
    save_file({"lm_head.weight": np.ones((96, 32), np.float32)}, folder / "model-2.safetensors")
    with pytest.raises(UserError, match=r"in two files: lm_head\.weight"):
        load_params(folder, config)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(
    saved: Saved, dtype: Any, number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config, _ = saved
    monkeypatch.setattr("train.hf.load.NUMBERS_AT_A_TIME", 100)
    bad = ["model.layers.1.self_attn.q_proj.weight", "model.norm.weight"]

    def spoil(tensors: dict[str, np.ndarray]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].astype(dtype)
        for name in bad:
            tensors[name].reshape(-1)[-1] = number

    rewrite(folder, spoil)
    with pytest.raises(UserError, match="weights are not finite: ") as caught:
        load_params(folder, config)
    assert all(name in str(caught.value) for name in bad)
    assert "layers.0" not in str(caught.value)
