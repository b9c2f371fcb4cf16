"""Reads the tokenizer in a GGUF file and writes it as files that Hugging Face's tokenizers load.

GGUF stores a byte-level BPE vocabulary and its merges, but only the name of the pre-tokeniser,
which splits text into words before merging. With a wrong one every text is still encoded and
decoded, but into other ids than the model was trained on, so unknown names are refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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

from ...files import write_json
from .reader import Metadata

# tokenizer.ggml.token_type
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _PreTokenizer(NamedTuple):
    """How text is split before the merges.

    Attributes:
      stages: makes the pre-tokenisers, which are applied in this order.
      nfc: whether text is normalised to NFC first.
      ignore_merges: whether a word that is in the vocabulary is one token, whatever the merges
        make of it, as in Llama 3.
      add_bos: whether BOS is added where the file does not say.
    """

    stages: Callable[[], list[pre_tokenizers.PreTokenizer]]
    nfc: bool = False
    ignore_merges: bool = False
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


# By the name in tokenizer.ggml.pre.
_PRE_TOKENIZERS = {
    "smollm": _PreTokenizer(_digits_then_gpt2),
    "qwen2": _PreTokenizer(lambda: _regex(_WORDS % r"\p{N}"), nfc=True),
    "llama-bpe": _PreTokenizer(
        lambda: _regex(_WORDS % r"\p{N}{1,3}"), ignore_merges=True, add_bos=True
    ),
}

# Hugging Face's names of special tokens, and GGUF's names of their ids.
_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
# Tokens that end a turn, at each of which generation stops.
_STOPS = ("eos_token_id", "eot_token_id", "eom_token_id")


@dataclass(frozen=True)
class GgufTokenizer:
    """A tokenizer as read from a GGUF file, complete and checked.

    Attributes:
      tokens: the vocabulary, by id.
      types: tokenizer.ggml.token_type of each token.
      merges: pairs of tokens in the order in which they are merged.
      pre: the pre-tokeniser's name.
      roles: ids of special tokens by Hugging Face's name.
      stops: ids of the tokens that end a turn.
      add_bos: whether texts begin with BOS.
      add_eos: whether texts end with EOS.
      chat_template: Jinja source, or None.
    """

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
        """Writes tokenizer.json, tokenizer_config.json and the chat template, if there is one."""
        self.build().save(str(folder / "tokenizer.json"))
        config = {
            # This class uses tokenizer.json unchanged. The classes named after a model family
            # rebuild it with a pre-tokeniser of their own.
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
            # Text mode would replace the template's newlines by the platform's own.
            (folder / "chat_template.jinja").write_bytes(self.chat_template.encode())

    def build(self) -> Tokenizer:
        """The tokenizer as an object."""
        pre = _PRE_TOKENIZERS[self.pre]
        # Tokens that only pad the embedding must not be the encoding of any text.
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
        """The tokens that are matched before the text is split, in the order of their ids."""
        # In a file without token types, BOS and EOS are special all the same.
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
    """Reads and checks the keys under `tokenizer.`.

    Raises:
      UserError: if one is missing, inconsistent or not supported.
    """
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
        repeated = next(token for token in tokens if tokens.count(token) > 1)
        raise metadata.error("tokenizer.ggml.tokens", f"lists {repeated!r} more than once")
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


def _read_pre(metadata: Metadata) -> str:
    model = metadata.require("tokenizer.ggml.model", str)
    if model != "gpt2":
        raise metadata.error(
            "tokenizer.ggml.model", f"is {model!r}; only byte-level BPE ('gpt2') can be imported"
        )
    pre = metadata.require("tokenizer.ggml.pre", str)
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
