"""Model folders tensor by tensor: what cannot be compared is refused by name."""

import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from train.errors import UserError
from train.hf.compare import small_files, tensor_specs, write_like
from train.hf.safetensors import open_weights


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"w": np.ones(3)}, tmp_path / f"{name}.safetensors")
    with open_weights(tmp_path) as reader, pytest.raises(UserError, match="in two files: w;"):
        tensor_specs(reader)


def test_a_type_that_is_not_supported_is_refused(tmp_path: Path) -> None:
    save_file({"w": np.ones(3, bool), "v": np.ones(3)}, tmp_path / "model.safetensors")
    said = re.escape("of a type that is not supported: w; convert them to one of F64, F32")
    with open_weights(tmp_path) as reader, pytest.raises(UserError, match=said):
        tensor_specs(reader)


def test_a_folder_written_again_is_the_same_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {name: rng.integers(0, 9, shape).astype(dtype) for name, shape, dtype in [
        ("odd", (3,), "u1"), ("scalar", (), "f8"), ("none", (0, 4), "f4"), ("matrix", (5, 7), "f2"),
    ]}  # fmt: skip
    again = tmp_path / "again"
    again.mkdir()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with open_weights(tmp_path) as reader:
        write_like(reader, again, reader.tensor)
    written, given = (folder / "model.safetensors" for folder in (again, tmp_path))
    assert written.read_bytes() == given.read_bytes()


def test_small_files_are_those_that_a_model_needs(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "notes.txt", "model.safetensors"):
        (tmp_path / name).write_text(name)
    assert small_files(tmp_path) == {
        "config.json": b"config.json",
        "tokenizer.json": b"tokenizer.json",
    }
