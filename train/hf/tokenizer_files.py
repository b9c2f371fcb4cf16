"""The files of a tokenizer, a chat template and a generation config that an export holds."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_json
from .ends import GENERATION_CONFIG, read_json

# Files that are copied as they are.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    GENERATION_CONFIG,
)
# A model's terms go with its copies.
TERMS = tuple(
    f"{name}{ending}"
    for name in ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
    for ending in ("", ".md", ".txt")
)
TEMPLATES = "additional_chat_templates"

# Marks of the assistant's text, a tag that transformers alone knows.
_MARKER = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
_TEMPLATE = re.compile(rf"{TEMPLATES}/\w[\w.-]*\.jinja")


def is_companion(name: str) -> bool:
    """Whether a file of this name, relative to a model's folder, goes with its weights."""
    return name in (*COMPANIONS, *TERMS, "README.md") or bool(_TEMPLATE.fullmatch(name))


def companions(folder: Path) -> list[str]:
    """The names of a folder's files that go with its weights, config.json aside."""
    files = [*folder.glob("*"), *folder.glob(f"{TEMPLATES}/*")]
    names = sorted(file.relative_to(folder).as_posix() for file in files if file.is_file())
    return [name for name in names if is_companion(name)]


def copy_companions(base: Path, folder: Path) -> None:
    """Copies a base's files, except its model card, which describes the base."""
    for name in companions(base):
        if name != "README.md":
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(base / name, folder / name)


def write_tokenizer_files(folder: Path, tokenizer: Any, ends: Sequence[int]) -> None:
    """Completes the copied files, so that all readers see one template and all ends.

    Args:
      folder: holds copies of the base's files.
      tokenizer: with the chat template of the training.
      ends: the ids at which the model stops, the end of a turn first.
    """
    templates = _templates(tokenizer)
    _write_templates(folder, templates)
    config = read_json(folder / "tokenizer_config.json")
    if config.get("tokenizer_class") == "TokenizersBackend":  # transformers 5's name alone.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):  # A mapping in transformers 4.
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if templates:
        config["chat_template"] = (
            templates["default"]
            if templates.keys() == {"default"}
            else [{"name": name, "template": text} for name, text in templates.items()]
        )
    special_tokens = dict(tokenizer.special_tokens_map)
    if tokenizer.extra_special_tokens:
        special_tokens["additional_special_tokens"] = list(map(str, tokenizer.extra_special_tokens))
    special_tokens |= read_json(folder / "special_tokens_map.json")
    if ends and _may_end_with(config, templates):
        end = tokenizer.convert_ids_to_tokens(ends[0])
        for content in (config, special_tokens):
            content["eos_token"] = _renamed(content.get("eos_token"), end)
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special_tokens)


def write_generation_config(folder: Path, config: Mapping[str, Any], ends: Sequence[int]) -> None:
    """Names all ends in generation_config.json, which is made if the base has none.

    Args:
      config: the content of config.json.
    """
    content = read_json(folder / GENERATION_CONFIG)
    if not content and config.get("bos_token_id") is not None:
        content["bos_token_id"] = config["bos_token_id"]
    content.pop("_from_model_config", None)
    if ends:
        content["eos_token_id"] = as_eos(ends)
    if content:
        write_json(folder / GENERATION_CONFIG, content)


def as_eos(ends: Sequence[int]) -> int | list[int]:
    """The value of eos_token_id: a list only where there are several."""
    return ends[0] if len(ends) == 1 else list(ends)


def _templates(tokenizer: Any) -> dict[str, str]:
    """A tokenizer's chat templates by name; the one that is used without tools is the default."""
    template = tokenizer.chat_template
    templates = template if isinstance(template, Mapping) else {"default": template}
    return {name: _without_markers(text) for name, text in templates.items() if text}


def _without_markers(template: str) -> str:
    """The template without generation markers, which llama.cpp and TGI refuse.

    Its text is the same: a condition that holds takes their place, because white space is cut
    around a tag.
    """
    return _MARKER.sub(lambda m: f"{{%{m[1]} {'endif' if m[2] else 'if true'} {m[3]}%}}", template)


def _write_templates(folder: Path, templates: Mapping[str, str]) -> None:
    for file in (folder / TEMPLATES).glob("*.jinja"):
        if file.stem not in templates:
            file.unlink()
    if not any((folder / TEMPLATES).glob("*")):
        shutil.rmtree(folder / TEMPLATES, ignore_errors=True)
    if "default" in templates and (folder / "chat_template.json").is_file():
        write_json(folder / "chat_template.json", {"chat_template": templates["default"]})
    for name, text in templates.items():
        if name == "default":
            file = folder / "chat_template.jinja"
        elif is_companion(f"{TEMPLATES}/{name}.jinja"):  # A name could lead elsewhere.
            file = folder / TEMPLATES / f"{name}.jinja"
        else:
            continue
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(text.encode())


def _may_end_with(config: Mapping[str, Any], templates: Mapping[str, str]) -> bool:
    """Whether another eos_token changes no text: neither a template nor the tokenizer writes it."""
    written = any("eos_token" in text for text in templates.values())
    return bool(templates) and not written and not config.get("add_eos_token")


def _renamed(token: Any, name: str) -> Any:
    """A special token with another text; its other properties stay."""
    return {**token, "content": name} if isinstance(token, Mapping) else name
