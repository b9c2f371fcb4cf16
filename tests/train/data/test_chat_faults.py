"""Templates, tokenizers and text that cannot be encoded, and what is said of them."""

from collections.abc import Callable
from typing import Any

Make = Callable[..., Any]


def test_a_template_that_refuses(make_tokenizer: Make, turns: Make, encode_error: Make) -> None:
    tokenizer = make_tokenizer("{{ raise_exception('roles\nmust alternate') }}")
    said = encode_error(tokenizer, {"messages": turns("u:1")})
    assert said.startswith("the chat template refuses the conversation (")
    assert "roles must alternate" in said


def test_no_template(make_tokenizer: Make, turns: Make, encode_error: Make) -> None:
    said = encode_error(make_tokenizer(None), {"messages": turns("u:1", "a:2")})
    assert "no chat template" in said


def test_no_end_token(make_tokenizer: Make, encode_error: Make) -> None:
    said = encode_error(make_tokenizer(eos_token=None), {"text": "ab"})
    assert said.startswith("the tokenizer has no end-of-text token")


def test_half_of_a_surrogate_pair(tokenizer: Any, encode_error: Make) -> None:
    assert "half of a surrogate pair" in encode_error(tokenizer, {"text": "\ud800"})
