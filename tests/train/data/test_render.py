"""Loss masks, token by token: ^ stands under what is learned."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from train.data import render
from train.errors import UserError

Make = Callable[..., Any]

MARKED = (
    "{% for m in messages %}{{ m['role'][0] }}:"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<e>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<e>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
MARKED_WITHOUT_END = MARKED.replace("<e>{% endgeneration %}", "{% endgeneration %}<e>")
WITH_BOS = "{{ bos_token }}{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}<e>{% endfor %}{% if add_generation_prompt %}a:{% endif %}"  # noqa: E501
OWN_SYSTEM = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}s:be kind<e>\n{% endif %}"
    "{{ m['role'][0] }}:{{ m['content'] }}<e>\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
SPACED = "{% for m in messages %}{{ m['role'][0] }}: {{ m['content'] }}<e>{% endfor %}{% if add_generation_prompt %}a: {% endif %}"  # noqa: E501
# Qwen3 shows the thoughts of the last answer only.
UNSTABLE = (
    "{% for m in messages %}{{ m['role'][0] }}:"
    "{% if m['role'] == 'assistant' and loop.last %}[]{% endif %}{{ m['content'] }}<e>{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def turns(*contents: str) -> list[dict[str, str]]:
    """Turns from s:…, u:… and a:…"""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[c[0]], "content": c[2:]} for c in contents]


def record(**fields: Any) -> dict[str, Any]:
    return fields | {"where": "data.jsonl:7"}


def shown(tokenizer: Any, fields: dict[str, Any]) -> tuple[str, str]:
    """The example's text with a special token as one letter, and the mask below it."""
    example = render(fields, tokenizer)
    assert example.tokens.dtype == np.int32
    assert example.target.dtype == np.bool_
    assert example.tokens.shape == example.target.shape
    assert example.where == "data.jsonl:7"
    letters = {"<pad>": "P", "<s>": "S", "<e>": "E", "Ġ": " ", "Ċ": "/"}
    tokens = tokenizer.convert_ids_to_tokens(example.tokens.tolist())
    text = "".join(letters.get(token, token) for token in tokens)
    return text, "".join("^" if t else " " for t in example.target).rstrip()


@pytest.mark.parametrize(
    ("template", "conversation", "text", "mask"),
    [
        pytest.param(
            None, ["u:hi", "a:yes"],
            "u:hiE/a:yesE/",
            "        ^^^^", id="one turn",
        ),
        pytest.param(
            None, ["s:x", "u:hi", "a:y", "u:so", "a:no"],
            "s:xE/u:hiE/a:yE/u:soE/a:noE/",
            "             ^^         ^^^", id="two turns",
        ),
        pytest.param(
            None, ["u:1", "a:2", "u:3"],
            "u:1E/a:2E/u:3E/",
            "       ^^", id="the user has the last word",
        ),
        pytest.param(
            None, ["u:a:b", "a:a:b"],
            "u:a:bE/a:a:bE/",
            "         ^^^^", id="content that looks like a header",
        ),
        pytest.param(
            None, ["u:1", "a:"],
            "u:1E/a:E/",
            "       ^", id="an empty answer is ended",
        ),
        pytest.param(
            None, ["a:hi", "u:1", "a:2"],
            "a:hiE/u:1E/a:2E/",
            "  ^^^        ^^", id="the assistant begins",
        ),
        pytest.param(
            None, ["u:1", "t:a:2", "a:3"],
            "u:1E/t:a:2E/a:3E/",
            "              ^^", id="a tool's result",
        ),
        pytest.param(
            OWN_SYSTEM, ["u:1", "a:2"],
            "s:be kindE/u:1E/a:2E/",
            "                  ^^", id="the template adds a system turn",
        ),
        pytest.param(
            OWN_SYSTEM, ["a:2"],
            "s:be kindE/a:2E/",
            "             ^^", id="… before an assistant that begins",
        ),
        pytest.param(
            WITH_BOS, ["u:1", "a:2"],
            "Su:1Ea:2E",
            "       ^^", id="the template begins with the beginning token",
        ),
        pytest.param(
            NO_END, ["u:1", "a:2", "u:3", "a:4"],
            "u:1/a:2/u:3/a:4/",
            "      ^^      ^^", id="a line break ends a turn where nothing else does",
        ),
        pytest.param(
            SPACED, ["u:1", "a:2"],
            "u: 1Ea: 2E",
            "        ^^", id="a header that ends with a space",
        ),
        pytest.param(
            UNSTABLE, ["u:1", "a:2"],
            "u:1Ea:[]2E",
            "      ^^^^", id="what the template puts into an answer",
        ),
        pytest.param(
            MARKED, ["u:1", "a:2", "u:3", "a:45"],
            "u:1E/a:2E/u:3E/a:45E/",
            "       ^^        ^^^", id="markers",
        ),
        pytest.param(
            MARKED_WITHOUT_END, ["u:1", "a:2", "u:3", "a:45"],
            "u:1E/a:2E/u:3E/a:45E/",
            "       ^^        ^^^", id="markers that leave out the end of turn",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("pad", ["<pad>", "<e>"], ids=["", "pad is end of turn"])
@pytest.mark.parametrize("adds_bos", [False, True], ids=["", "adds bos"])
def test_the_assistants_words_and_their_end_are_learned(
    make_tokenizer: Make,
    template: str | None,
    conversation: list[str],
    text: str,
    mask: str,
    pad: str,
    adds_bos: bool,
) -> None:
    options = {} if template is None else {"template": template}
    tokenizer = make_tokenizer(**options, pad_token=pad, adds_bos=adds_bos)
    assert shown(tokenizer, record(messages=turns(*conversation))) == (text, mask)


def test_letters_of_several_bytes(tokenizer: Any) -> None:
    example = render(record(messages=turns("u:é", "a:🙂")), tokenizer)
    # u : é(2) E / a : 🙂(4) E /
    assert example.target.tolist() == [False] * 8 + [True] * 5 + [False]


def test_a_token_over_the_header_and_the_answer_is_the_headers() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {"u": 0, ":": 1, "a": 2, "\n": 3, ".": 4, "\n\n": 5, "x": 6}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[("\n", "\n")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}\n{{ m['content'] }}.{% endfor %}"
        "{% if add_generation_prompt %}a\n{% endif %}"
    )
    example = render(record(messages=turns("u:x", "a:\nx")), tokenizer)
    assert example.tokens.tolist() == [0, 3, 6, 4, 2, 5, 6, 4]
    assert example.target.tolist() == [False] * 6 + [True] * 2


@pytest.mark.parametrize(
    ("options", "fields", "text", "mask"),
    [
        ({}, {"text": "ab"}, "abE", "^^^"),
        ({}, {"text": "abE".replace("E", "<e>")}, "abE", "^^^"),
        ({"adds_bos": True}, {"text": "ab"}, "SabE", " ^^^"),
        ({"adds_bos": True}, {"text": "<s>ab"}, "SabE", "^^^^"),
        ({"adds_bos": True}, {"prompt": "1+1=", "completion": "2"}, "S1+1=2E", "     ^^"),
        ({}, {"prompt": "1+1=", "completion": "2"}, "1+1=2E", "    ^^"),
        ({}, {"prompt": "1+1=", "completion": ""}, "1+1=E", "    ^"),
        ({}, {"prompt": "x<e>", "completion": ""}, "xEE", "  ^"),
        (
            {},
            {"prompt": turns("u:1", "a:2", "u:3"), "completion": turns("a:4")},
            "u:1E/a:2E/u:3E/a:4E/",
            "                 ^^",
        ),
        (
            {"template": MARKED},
            {"prompt": turns("u:1", "a:2", "u:3"), "completion": turns("a:4")},
            "u:1E/a:2E/u:3E/a:4E/",
            "                 ^^",
        ),
        ({}, {"messages": turns("u:1", "a:2"), "prompt": "no", "text": "no"}, "u:1E/a:2E/", "       ^^"),  # noqa: E501
        ({}, {"messages": None, "prompt": None, "text": "ab"}, "abE", "^^^"),
    ],
)  # fmt: skip
def test_completions_and_text(
    make_tokenizer: Make, options: dict[str, Any], fields: dict[str, Any], text: str, mask: str
) -> None:
    assert shown(make_tokenizer(**options), record(**fields)) == (text, mask)


USER, ANSWER = turns("u:1"), turns("a:2")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"messages": USER}, "has no token to learn"),
        ({"text": ""}, "has no token to learn"),
        ({"prompt": USER, "completion": USER}, "has no token to learn"),
        ({}, "needs messages, prompt and completion, or text, and has none"),
        ({"question": 1}, "and has 'question'; map other columns with data.columns"),
        ({"messages": "hi"}, "messages must be a list of turns"),
        ({"messages": []}, "messages must be a list of turns"),
        ({"messages": ["hi"]}, "messages, turn 1 must be an object"),
        ({"messages": [*USER, {"role": "wizard", "content": "x"}]}, "turn 2 has the role 'wizard'"),
        ({"messages": [{"content": "x"}]}, "turn 1 has the role None; use one of system, user"),
        ({"messages": [{"role": "user"}]}, "turn 1: content must be a string, not NoneType"),
        ({"messages": [{"role": "user", "content": 3}]}, "content must be a string, not int"),
        ({"prompt": "x"}, "has no completion"),
        ({"completion": "x"}, "has no prompt"),
        ({"prompt": "x", "completion": ANSWER}, "both be strings or both lists"),
        ({"prompt": 1, "completion": 2}, "prompt must be a list"),
        ({"text": 3}, "text must be a string, not int"),
        ({"text": "\ud800"}, "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_used(tokenizer: Any, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        render(record(**fields), tokenizer)
    assert str(caught.value).startswith("data.jsonl:7: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_that_changes_earlier_turns(make_tokenizer: Make) -> None:
    with pytest.raises(UserError, match=r"data.jsonl:7: .* turn 2 differently once others follow"):
        render(record(messages=turns("u:1", "a:2", "u:3", "a:4")), make_tokenizer(UNSTABLE))


def test_a_template_that_refuses(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer("{{ raise_exception('roles\nmust alternate') }}")
    with pytest.raises(UserError, match=r"7: the chat template refuses .*roles must alternate"):
        render(record(messages=USER), tokenizer)


def test_no_template(make_tokenizer: Make) -> None:
    with pytest.raises(UserError, match=r"data.jsonl:7: .* no chat template"):
        render(record(messages=turns("u:1", "a:2")), make_tokenizer(None))


def test_no_end_token(make_tokenizer: Make) -> None:
    with pytest.raises(UserError, match=r"data.jsonl:7: the tokenizer has no end-of-text token"):
        render(record(text="ab"), make_tokenizer(eos_token=None))
