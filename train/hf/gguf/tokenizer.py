"""The tokenizer inside a GGUF file, written as the files that Hugging Face tokenizers load.

GGUF stores a byte-level BPE vocabulary and its merges, but of the pre-tokeniser (how text is cut
into words before merging) only a name. A wrong guess there still encodes and decodes every text,
just into other ids than the model was trained on, so a name that is not in the table is refused.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from ...errors import UserError

T = TypeVar("T")

# tokenizer.ggml.token_type
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Metadata:
    """The key-value section of a GGUF file, with the type of what is asked for checked."""

    source: Path
    values: Mapping[str, Any]

    def get(self, key: str, kind: type[T]) -> T | None:
        """The value of a key, or None where the file does not have it."""
        value = self.values.get(key)
        if value is None:
            return None
        # To Python a bool is an int; a layer count of True is still a broken file.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(key, f"is {_brief(value)}, expected a single {kind.__name__}")
        return value

    def need(self, key: str, kind: type[T]) -> T:
        """The value of a key that the import cannot do without."""
        value = self.get(key, kind)
        if value is None:
            raise self.error(key, "is missing; use a GGUF file made by a current converter")
        return value

    def get_list(self, key: str, kind: type[T]) -> list[T] | None:
        """An array of one type of entries, or None where the file does not have it."""
        values = self.get(key, list)
        if values is not None and not all(isinstance(value, kind) for value in values):
            raise self.error(key, f"has entries that are not {kind.__name__}")
        return values

    def error(self, key: str, problem: str) -> UserError:
        return UserError(f"{self.source}: {key} {problem}")


class _PreTokenizer(NamedTuple):
    stages: Callable[[], list[pre_tokenizers.PreTokenizer]]
    nfc: bool = False
    # Llama 3 takes a word that is itself in the vocabulary whole, whatever the merges say.
    ignore_merges: bool = False
    # Whether BOS is added where the file does not say.
    add_bos: bool = False


def _digits_then_gpt2() -> list[pre_tokenizers.PreTokenizer]:
    return [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]


def _regex(pattern: str) -> list[pre_tokenizers.PreTokenizer]:
    return [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


# tokenizer.ggml.pre -> how text is cut before the merges.
_PRE_TOKENIZERS = {
    "smollm": _PreTokenizer(_digits_then_gpt2),
    "qwen2": _PreTokenizer(lambda: _regex(_WORDS % r"\p{N}"), nfc=True),
    "llama-bpe": _PreTokenizer(
        lambda: _regex(_WORDS % r"\p{N}{1,3}"), ignore_merges=True, add_bos=True
    ),
}

# Hugging Face's name of a special token -> GGUF's name of its id.
_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
# Tokens that end a turn: generation has to stop at each of them.
_STOPS = ("eos_token_id", "eot_token_id", "eom_token_id")


@dataclass(frozen=True)
class GgufTokenizer:
    """A tokenizer as read from a GGUF file: complete, checked, and not yet built."""

    tokens: list[str]
    types: list[int]
    merges: list[tuple[str, str]]
    pre: str
    roles: dict[str, int]
    stops: list[int]
    add_bos: bool
    add_eos: bool
    chat_template: str | None

    def write(self, folder: Path, context_length: int) -> None:
        """Writes tokenizer.json, tokenizer_config.json and, if there is one, the template."""
        self.build().save(str(folder / "tokenizer.json"))
        config = {
            # The class that takes tokenizer.json as it is. The classes named after a model
            # family rebuild it with a pre-tokeniser of their own.
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{role: self.tokens[index] for role, index in self.roles.items()},
            "add_bos_token": self.add_bos,
            "add_eos_token": self.add_eos,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": context_length,
        }
        write_json(folder / "tokenizer_config.json", config)
        if self.chat_template is not None:
            # Bytes: text mode would turn newlines of the template into the platform's own.
            (folder / "chat_template.jinja").write_bytes(self.chat_template.encode())

    def build(self) -> Tokenizer:
        """The tokenizer itself."""
        pre = _PRE_TOKENIZERS[self.pre]
        # Rows that only pad the embedding are no tokens: no text may encode to them.
        vocab = {
            token: index
            for index, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind != _UNUSED
        }
        tokenizer = Tokenizer(
            models.BPE(vocab=vocab, merges=self.merges, ignore_merges=pre.ignore_merges)
        )
        if pre.nfc:
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(pre.stages())
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = self._post_processor()
        tokenizer.add_tokens(self._added_tokens())
        return tokenizer

    def _added_tokens(self) -> list[AddedToken]:
        """Tokens that are looked for before the text is cut, in the order of their ids."""
        # A file without token types still means its bos and eos to be special.
        special = {*self.roles.values(), *self.stops}
        special |= {index for index, kind in enumerate(self.types) if kind == _CONTROL}
        plain = {index for index, kind in enumerate(self.types) if kind == _USER_DEFINED}
        return [
            AddedToken(self.tokens[index], special=index in special, normalized=False)
            for index in sorted(special | plain)
        ]

    def _post_processor(self) -> processors.PostProcessor:
        byte_level = processors.ByteLevel(trim_offsets=False)
        ends = [
            (self.tokens[self.roles[role]], self.roles[role])
            if wanted and role in self.roles
            else None
            for role, wanted in (("bos_token", self.add_bos), ("eos_token", self.add_eos))
        ]
        if ends == [None, None]:
            return byte_level
        bos, eos = ([end[0]] if end else [] for end in ends)
        template = processors.TemplateProcessing(
            single=[*bos, "$A", *eos],
            pair=[*bos, "$A", *eos, *(f"{token}:1" for token in bos), "$B:1"]
            + [f"{token}:1" for token in eos],
            special_tokens=[end for end in ends if end],
        )
        return processors.Sequence([byte_level, template])


def read_tokenizer(metadata: Metadata) -> GgufTokenizer:
    """Reads and checks everything under `tokenizer.`; raises UserError for what is not known."""
    pre = _read_pre(metadata)
    tokens = metadata.get_list("tokenizer.ggml.tokens", str)
    if not tokens:
        raise metadata.error("tokenizer.ggml.tokens", "is missing or empty")
    types = metadata.get_list("tokenizer.ggml.token_type", int) or [1] * len(tokens)
    if len(types) != len(tokens):
        raise metadata.error(
            "tokenizer.ggml.token_type", f"has {len(types)} entries for {len(tokens)} tokens"
        )
    if len(set(tokens)) != len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise metadata.error("tokenizer.ggml.tokens", f"lists {twice!r} more than once")
    ids = {name: _read_id(metadata, name, len(tokens)) for name in {*_ROLES.values(), *_STOPS}}
    roles = {role: index for role, name in _ROLES.items() if (index := ids[name]) is not None}
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", bool)
    return GgufTokenizer(
        tokens=tokens,
        types=types,
        merges=_read_merges(metadata, set(tokens)),
        pre=pre,
        roles=roles,
        stops=list(dict.fromkeys(i for name in _STOPS if (i := ids[name]) is not None)),
        add_bos=(_PRE_TOKENIZERS[pre].add_bos if add_bos is None else add_bos)
        and "bos_token" in roles,
        add_eos=bool(metadata.get("tokenizer.ggml.add_eos_token", bool)) and "eos_token" in roles,
        chat_template=metadata.get("tokenizer.chat_template", str),
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file as Hugging Face does: indented, UTF-8, a newline at the end."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_pre(metadata: Metadata) -> str:
    model = metadata.need("tokenizer.ggml.model", str)
    if model != "gpt2":
        raise metadata.error(
            "tokenizer.ggml.model", f"is {model!r}; only byte-level BPE ('gpt2') can be imported"
        )
    pre = metadata.need("tokenizer.ggml.pre", str)
    if pre not in _PRE_TOKENIZERS:
        raise metadata.error(
            "tokenizer.ggml.pre", f"is {pre!r}; can be imported: {', '.join(_PRE_TOKENIZERS)}"
        )
    return pre


def _read_id(metadata: Metadata, name: str, size: int) -> int | None:
    key = f"tokenizer.ggml.{name}"
    index = metadata.get(key, int)
    if index is not None and not 0 <= index < size:
        raise metadata.error(key, f"is {index}, outside the vocabulary of {size} tokens")
    return index


def _read_merges(metadata: Metadata, vocabulary: set[str]) -> list[tuple[str, str]]:
    merges = []
    for line in metadata.get_list("tokenizer.ggml.merges", str) or []:
        left, _, right = line.partition(" ")
        if not {left, right, left + right} <= vocabulary:
            raise metadata.error(
                "tokenizer.ggml.merges", f"has {line!r}, which is not two tokens that make a third"
            )
        merges.append((left, right))
    return merges


def _brief(value: Any) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)[:60]
