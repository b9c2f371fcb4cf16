"""Safetensors files are read by name and slice, written tensor by tensor, and never trusted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from train.errors import UserError
from train.hf.safetensors import (
    DTYPES,
    INDEX,
    LABELS,
    TensorSpec,
    as_bytes,
    name_list,
    open_safetensors,
    open_weights,
    weight_files,
    write_safetensors,
)

WEIGHTS = "model.safetensors"


def of_every_type() -> dict[str, np.ndarray]:
    """A tensor of each type, among them a scalar and one without entries."""
    tensors = {label: np.arange(6).reshape(2, 3).astype(dtype) for label, dtype in DTYPES.items()}
    return tensors | {"scalar": np.array(3.0), "none": np.zeros((0, 4), np.float32)}


def test_what_was_written_is_what_safetensors_reads(tmp_path: Path) -> None:
    tensors = of_every_type()
    specs = {name: TensorSpec(LABELS[x.dtype.name], x.shape) for name, x in tensors.items()}
    write_safetensors(tmp_path / WEIGHTS, specs, tensors.__getitem__, {"format": "pt"})
    loaded = load_file(tmp_path / WEIGHTS)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        np.testing.assert_array_equal(loaded[name], tensor, name)
    with open_safetensors(tmp_path / WEIGHTS) as file:
        assert file.metadata() == {"format": "pt"}


def test_a_reader_gives_specs_tensors_and_slices(tmp_path: Path) -> None:
    tensors = of_every_type()
    save_file(tensors, tmp_path / WEIGHTS)
    with open_weights(tmp_path) as reader:
        assert reader.folder == tmp_path
        assert reader.names == sorted(tensors)
        assert not reader.duplicates
        assert reader.spec("BF16") == TensorSpec("BF16", (2, 3))
        assert (reader.spec("BF16").num_entries, reader.spec("BF16").num_bytes) == (6, 12)
        np.testing.assert_array_equal(reader.tensor("I16"), tensors["I16"])
        part = reader.read("F32", (slice(1, 2), slice(0, 2)))
        np.testing.assert_array_equal(part, tensors["F32"][1:2, :2])


def test_a_tensor_in_two_files_is_reported(tmp_path: Path) -> None:
    save_file({"w": np.ones(3), "a": np.ones(3)}, tmp_path / "a.safetensors")
    save_file({"w": np.ones(3), "b": np.ones(3)}, tmp_path / "b.safetensors")
    with open_weights(tmp_path) as reader:
        assert reader.duplicates == ["w"]
        assert reader.names == ["a", "b", "w"]


def test_bytes_are_row_major_and_copied_only_if_needed() -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    assert bytes(as_bytes(array.T)) == array.T.tobytes()
    assert np.shares_memory(np.frombuffer(as_bytes(array), np.uint8), array)


@pytest.mark.parametrize("keep", [-1, 5, 0])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    file = tmp_path / WEIGHTS
    save_file({"w": np.ones(3)}, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model.safetensors: is not a whole .* copy it again"):
        open_safetensors(file)


def test_the_files_are_one_those_of_the_index_or_all(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for file in files:
        file.touch()
    assert weight_files(tmp_path) == files
    weight_map = {"x": "c.safetensors", "y": "a.safetensors", "z": "c.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert weight_files(tmp_path) == [files[0], files[2]]
    (tmp_path / WEIGHTS).touch()
    assert weight_files(tmp_path) == [tmp_path / WEIGHTS]


@pytest.mark.parametrize("target", ["../other/model.safetensors", "/etc/passwd", "..", 7])
def test_an_index_names_files_beside_it_only(target: Any, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": target}}))
    with pytest.raises(UserError, match="may only name files beside it"):
        weight_files(tmp_path)


def test_a_file_of_the_index_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": "gone.safetensors"}}))
    with pytest.raises(UserError, match=r"gone\.safetensors: no such file"), open_weights(tmp_path):
        pytest.fail("the body must not run")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 1}'])
def test_a_broken_index_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(UserError, match=r"index\.json: is not an index"):
        weight_files(tmp_path)


def test_pickles_are_refused_and_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \*\.safetensors"):
        weight_files(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match="pickle file, which could run code and is never loaded"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["b", "a"], "b, a"),
        (["model.layers.3.w"], "model.layers.3.w"),
        (
            [f"model.layers.{n}.w" for n in (7, 0, 1, 2, 3, 5)] + ["x"],
            "model.layers.{0-3,5,7}.w, x",
        ),
    ],
)
def test_names_of_layers_are_one(names: list[str], text: str) -> None:
    assert name_list(names) == text
