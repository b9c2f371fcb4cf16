"""Tokenizers of bytes, so that expectations can be counted by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SPECIALS = ["<pad>", "<s>", "<e>"]

# The assistant's header and the line break after <e> are not what the assistant wrote.
PLAIN = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}<e>\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet files are read through a cache: not the user's."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """Makes a tokenizer in which every byte and every special is a token."""

    def make(template: str | None = PLAIN, *, adds_bos: bool = False, **tokens: str | None) -> Any:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {token: at for at, token in enumerate([*SPECIALS, *letters])}
        raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        raw.decoder = decoders.ByteLevel()
        raw.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
        if adds_bos:
            raw.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
            )
        named = {"bos_token": "<s>", "eos_token": "<e>", "pad_token": "<pad>"} | tokens
        made = PreTrainedTokenizerFast(tokenizer_object=raw, **named)
        made.chat_template = template
        return made

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def stdlib() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The real one: it takes seconds to read."""
    from train.data.python_stdlib import load_stdlib

    return load_stdlib(0.05)


@pytest.fixture(scope="session")
def read_all() -> Callable[..., list[dict[str, Any]]]:
    """Reads a source's records, each with its position under "where"."""
    from train.data.sources import open_source

    def read_all(*args: Any) -> list[dict[str, Any]]:
        records = open_source(*args)
        return [records[n] | {"where": records.where(n)} for n in range(len(records))]

    return read_all


@pytest.fixture(scope="session")
def source_error() -> Callable[[Path | str], str]:
    """The error of opening a source."""
    from train.data.sources import open_source
    from train.errors import UserError

    def source_error(source: Path | str) -> str:
        with pytest.raises(UserError) as caught:
            open_source(str(source))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return source_error


@pytest.fixture(scope="session")
def record_error() -> Callable[[Path], str]:
    """The error of the first record that cannot be read, with its position."""
    from train.data.sources import open_source
    from train.errors import UserError

    def record_error(source: Path) -> str:
        records = open_source(str(source))
        for number in range(len(records)):
            try:
                records[number]
            except UserError as error:
                return f"{records.where(number)}: {error}"
        pytest.fail("every record can be read")

    return record_error


@pytest.fixture(scope="session")
def write_parquet() -> Callable[[Path, list[dict[str, Any]]], Path]:
    """Writes records to a Parquet file."""

    def write_parquet(path: Path, records: list[dict[str, Any]]) -> Path:
        from datasets import Dataset

        Dataset.from_list(records).to_parquet(path)
        return path

    return write_parquet


@pytest.fixture(scope="session")
def turns() -> Callable[..., list[dict[str, str]]]:
    """Turns from s:…, u:…, a:… and t:…"""

    def turns(*contents: str) -> list[dict[str, str]]:
        roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
        return [{"role": roles[c[0]], "content": c[2:]} for c in contents]

    return turns


@pytest.fixture(scope="session")
def encode_record() -> Callable[..., Any]:
    """The example of a row that is not a preference pair."""
    from train.data.chat import RecordReader, Renderer
    from train.data.tokenize import encode

    def encode_record(
        tokenizer: Any, fields: dict[str, Any], loss_on: Any = "assistant", **settings: Any
    ) -> Any:
        renderer = Renderer(RecordReader(loss_on=loss_on, **settings), tokenizer)
        [rendered] = renderer.render(fields)
        return encode([rendered], tokenizer)[0]

    return encode_record


@pytest.fixture(scope="session")
def encode_error(encode_record: Callable[..., Any]) -> Callable[..., str]:
    """The error of a row that cannot be encoded."""
    from train.errors import UserError

    def encode_error(*args: Any) -> str:
        with pytest.raises(UserError) as caught:
            encode_record(*args)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return encode_error


@pytest.fixture(scope="session")
def draw() -> Callable[[Any, Any], tuple[str, str]]:
    """An example's text with a special token as one letter, and the mask below it."""

    def draw(tokenizer: Any, example: Any) -> tuple[str, str]:
        assert example.tokens.dtype == np.int32
        assert example.loss_mask.dtype == np.bool_
        assert example.tokens.shape == example.loss_mask.shape
        letters = {"<pad>": "P", "<s>": "S", "<e>": "E", "Ġ": " ", "Ċ": "/"}
        tokens = tokenizer.convert_ids_to_tokens(example.tokens.tolist())
        text = "".join(letters.get(token, token) for token in tokens)
        return text, "".join("^" if t else " " for t in example.loss_mask).rstrip()

    return draw


@pytest.fixture(scope="session")
def draw_record(
    draw: Callable[..., Any], encode_record: Callable[..., Any]
) -> Callable[..., tuple[str, str]]:
    """What draw gives of the example of a row that is not a preference pair."""

    def draw_record(tokenizer: Any, *args: Any, **settings: Any) -> tuple[str, str]:
        return draw(tokenizer, encode_record(tokenizer, *args, **settings))

    return draw_record


@pytest.fixture
def build(tokenizer: Any, cache: Path) -> Callable[..., Any]:
    """Builds data sets from sources and settings of `data`."""
    from train.config.data import DataSection
    from train.data.datasets import DataContext, build_datasets

    def build(train: Any, seed: int = 0, vocab_size: int = 300, **options: Any) -> Any:
        train = str(train) if isinstance(train, Path) else train
        section = DataSection(train=train, **{"eval_fraction": 0.2, "max_length": 64} | options)
        return build_datasets(section, DataContext(tokenizer, vocab_size, seed, cache))

    return build
