"""GGUF files are read whole, dequantised, and refused where they are damaged."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from train.errors import UserError
from train.hf.gguf.reader import Metadata, dequantized, open_gguf, read_metadata, shortened


def test_quantised_weights_are_those_of_the_gguf_package(gguf: Any) -> None:
    kind = GGMLQuantizationType.Q8_0
    gguf.imported(quantized=kind)
    tensors = gguf.tensors()
    for name, original in gguf.state_dict("llama").items():
        expected = original if original.ndim == 1 else dequantize(quantize(original, kind), kind)
        np.testing.assert_array_equal(tensors[name], expected, err_msg=name)


def test_weights_that_are_not_finite_are_refused(gguf: Any) -> None:
    weights = gguf.state_dict("llama")
    weights["model.norm.weight"][3] = np.nan
    source = gguf.write(weights=weights)
    gguf.refused(source, "output_norm.weight", "not finite")


def test_a_type_that_cannot_be_dequantised_is_refused(gguf: Any) -> None:
    weights = gguf.state_dict("llama")
    weights["model.norm.weight"] = weights["model.norm.weight"].astype(np.float64)
    source = gguf.write(weights=weights)
    gguf.refused(source, "output_norm.weight", "F64")


def test_data_that_do_not_fit_their_type_are_refused() -> None:
    empty: Any = SimpleNamespace(
        name="output.weight",
        data=np.zeros((0, 18), np.uint8),
        tensor_type=GGMLQuantizationType.Q4_0,
    )
    with pytest.raises(UserError, match=r"m\.gguf: output\.weight has other data than its shape"):
        dequantized(Path("m.gguf"), empty)


def test_a_file_cut_short_anywhere_is_refused(gguf: Any, tmp_path: Path) -> None:
    whole = gguf.write(file="whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [*range(0, 64, 5), *range(64, len(whole), 997), len(whole) - 32]:
        cut.write_bytes(whole[:size])
        gguf.refused(cut, "cut.gguf", "download or convert it again")


def test_text_that_is_not_utf8_is_refused_by_key(gguf: Any, tmp_path: Path) -> None:
    whole = gguf.write(file="whole.gguf").read_bytes()
    assert whole.count(b"smollm") == 1
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(whole.replace(b"smollm", b"smol\xfem"))
    gguf.refused(broken, "broken.gguf", "tokenizer.ggml.pre cannot be read", "convert it again")


def test_other_files_and_no_file_are_refused(gguf: Any, tmp_path: Path) -> None:
    text = tmp_path / "notes.gguf"
    text.write_text("not a model" * 100)
    gguf.refused(text, "notes.gguf", "not a whole GGUF file")
    gguf.refused(tmp_path / "absent.gguf", "absent.gguf", "no such file")
    gguf.refused(tmp_path, "no such file")


def test_a_float_is_the_decimal_that_its_author_wrote(gguf: Any) -> None:
    source = gguf.write()
    metadata = read_metadata(source, open_gguf(source))
    assert metadata.values["llama.attention.layer_norm_rms_epsilon"] == 1e-5


def test_values_of_another_type_are_refused_by_key() -> None:
    metadata = Metadata(Path("a.gguf"), {"n": 3, "flag": True, "list": [1, 2], "mixed": [1, "x"]})
    assert metadata.get("n", int) == metadata.require("n", int) == 3
    assert metadata.get("absent", int) is metadata.get_list("absent", int) is None
    assert metadata.get_list("list", int) == [1, 2]
    for key, problem in [("flag", "is True, expected a single int"), ("list", "is a list of 2")]:
        with pytest.raises(UserError, match=f"a.gguf: {key} {problem}"):
            metadata.get(key, int)
    with pytest.raises(UserError, match="mixed has entries that are not int"):
        metadata.get_list("mixed", int)
    with pytest.raises(UserError, match="absent is missing"):
        metadata.require("absent", str)


def test_long_lists_are_shortened() -> None:
    assert shortened(["a", "b"], 2) == "a; b"
    assert shortened(["a", "b", "c", "d"], 2) == "a; b and 2 more"
