"""The folder of an import is whole, and replaces nothing but an earlier import."""

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from train.hf.gguf import import_gguf


@pytest.mark.parametrize(
    ("dtype", "expected", "label"),
    [("bfloat16", ml_dtypes.bfloat16, "BF16"), ("float16", np.float16, "F16")],
)
def test_weights_are_rounded_to_the_dtype_asked_for(
    gguf: Any, tmp_path: Path, dtype: Any, expected: npt.DTypeLike, label: str
) -> None:
    import_gguf(gguf.write(), tmp_path / "out", dtype)
    file = (tmp_path / "out" / "model.safetensors").read_bytes()
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + size])
    for name, original in gguf.state_dict("llama").items():
        assert header[name]["dtype"] == label
        start, end = header[name]["data_offsets"]
        stored = file[8 + size + start : 8 + size + end]
        assert stored == original.astype(expected).tobytes(), name
    assert gguf.json("config.json")["dtype"] == dtype


def test_weights_that_overflow_float16_are_refused(gguf: Any) -> None:
    weights = gguf.state_dict("llama")
    weights["model.norm.weight"][3] = 1e6
    source = gguf.write(weights=weights)
    gguf.refused(source, "model.norm.weight", "float16", dtype="float16")


def test_an_earlier_import_is_replaced_whole(gguf: Any, tmp_path: Path) -> None:
    out = gguf.imported()
    names = sorted(path.name for path in out.iterdir())
    keys = {"tokenizer.chat_template": None, "llama.rope.freq_base": 5_000.0}
    import_gguf(gguf.write(file="other.gguf", keys=keys), out)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        set(names) - {"chat_template.jinja"}
    )
    assert gguf.json("config.json")["rope_parameters"]["rope_theta"] == 5_000.0
    assert sorted(os.listdir(tmp_path)) == ["model.gguf", "other.gguf", "out"]


def test_an_earlier_import_survives_a_failed_one(gguf: Any) -> None:
    out = gguf.imported()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    weights = gguf.state_dict("llama")
    weights["model.norm.weight"][0] = np.inf
    gguf.refused(gguf.write(file="bad.gguf", weights=weights), "not finite")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_folder_with_other_files_is_left_alone(gguf: Any, tmp_path: Path) -> None:
    source = gguf.write()
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    gguf.refused(source, "thesis.txt", "another folder")
    (out / "thesis.txt").unlink()
    import_gguf(source, out)  # an empty folder will do
    (out / "notes.txt").write_text("added to an import")
    gguf.refused(source, "notes.txt")


def test_a_file_in_the_way_is_left_alone(gguf: Any, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    gguf.refused(gguf.write(), "is a file")


def test_parents_are_made(gguf: Any, tmp_path: Path) -> None:
    import_gguf(gguf.write(), tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a") == ["b"]


def test_a_folder_that_cannot_be_made_is_a_user_error(gguf: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    gguf.refused(gguf.write(), "cannot be written", out=tmp_path / "file" / "out")
