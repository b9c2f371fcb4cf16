"""Loss masks, token by token: ^ stands under what is learned."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.data.chat import LossOn, render
from train.data.records import read_record
from train.data.tokenize import Example, encode
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


def made(tokenizer: Any, fields: dict[str, Any], loss_on: LossOn = "assistant") -> Example:
    """The example of a row that is not a preference pair."""
    return encode(render(read_record(fields), tokenizer, loss_on), tokenizer)[0]


def drawn(tokenizer: Any, example: Example) -> tuple[str, str]:
    """The example's text with a special token as one letter, and the mask below it."""
    assert example.tokens.dtype == np.int32
    assert example.loss_mask.dtype == np.bool_
    assert example.tokens.shape == example.loss_mask.shape
    letters = {"<pad>": "P", "<s>": "S", "<e>": "E", "Ġ": " ", "Ċ": "/"}
    tokens = tokenizer.convert_ids_to_tokens(example.tokens.tolist())
    text = "".join(letters.get(token, token) for token in tokens)
    return text, "".join("^" if t else " " for t in example.loss_mask).rstrip()


def shown(tokenizer: Any, fields: dict[str, Any], loss_on: LossOn = "assistant") -> tuple[str, str]:
    return drawn(tokenizer, made(tokenizer, fields, loss_on))


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
    assert shown(tokenizer, {"messages": turns(*conversation)}) == (text, mask)


def test_letters_of_several_bytes(tokenizer: Any) -> None:
    example = made(tokenizer, {"messages": turns("u:é", "a:🙂")})
    # u : é(2) E / a : 🙂(4) E /
    assert example.loss_mask.tolist() == [False] * 8 + [True] * 5 + [False]


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
    example = made(tokenizer, {"messages": turns("u:x", "a:\nx")})
    assert example.tokens.tolist() == [0, 3, 6, 4, 2, 5, 6, 4]
    assert example.loss_mask.tolist() == [False] * 6 + [True] * 2


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
    assert shown(make_tokenizer(**options), fields) == (text, mask)


def test_a_doubled_beginning_token_is_made_one(make_tokenizer: Make) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}<e>{% endfor %}"
    tokenizer = make_tokenizer(template, adds_bos=True)
    assert shown(tokenizer, {"messages": turns("u:<s>hi", "a:y")})[0] == "ShiEyE"
    assert shown(tokenizer, {"text": "<s><s>hi"})[0] == "ShiE"


CONVERSATION = turns("u:1", "a:2", "u:3", "a:45", "u:6")


@pytest.mark.parametrize("template", [None, MARKED], ids=["prefixes", "markers"])
@pytest.mark.parametrize(
    ("loss_on", "mask"),
    [
        ("assistant", "       ^^        ^^^"),
        ("last", "                 ^^^"),
        ("everything", "^^^^^^^^^^^^^^^^^^^^^^^^^^"),
    ],
)
def test_what_is_learned_of_a_conversation(
    make_tokenizer: Make, template: str | None, loss_on: LossOn, mask: str
) -> None:
    tokenizer = make_tokenizer(**({} if template is None else {"template": template}))
    text = "u:1E/a:2E/u:3E/a:45E/u:6E/"
    assert shown(tokenizer, {"messages": CONVERSATION}, loss_on) == (text, mask[: len(text)])


def test_everything_of_a_prompt_is_learned_too(tokenizer: Any) -> None:
    fields = {"prompt": "1+1=", "completion": "2"}
    assert shown(tokenizer, fields, "everything") == ("1+1=2E", "^^^^^^")


TOOLS = (
    "{% if tools %}{% for t in tools %}[{{ t['function']['name'] }}]{% endfor %}{% endif %}"
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}({{ c['function']['name'] }}){% endfor %}<e>{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.mark.parametrize("as_text", [False, True], ids=["list", "JSON text"])
def test_tools_and_their_calls(make_tokenizer: Make, as_text: bool) -> None:
    tools: Any = [{"type": "function", "function": {"name": "add"}}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    messages = [*turns("u:1+1"), call, *turns("t:2", "a:two")]
    tokenizer = make_tokenizer(TOOLS)
    fields = {"messages": messages, "tools": json.dumps(tools) if as_text else tools}
    assert shown(tokenizer, fields) == (
        "[add]u:1+1Ea:(add)Et:2Ea:twoE",
        "             ^^^^^^      ^^^^",
    )


@pytest.mark.parametrize(
    ("conversation", "text", "mask"),
    [
        (["u:1", "a:2", "a:3"], "u:1E/a:2E/a:3E/", "       ^^   ^^"),
        (["u:1", "u:2", "a:3"], "u:1E/u:2E/a:3E/", "            ^^"),
        (["u:1", "a:", "u:2", "a:"], "u:1E/a:E/u:2E/a:E/", "       ^        ^"),
        (["s:", "u:", "a: x "], "s:E/u:E/a: x E/", "          ^^^^"),
    ],
    ids=["assistant twice", "user twice", "empty answers", "white space"],
)  # fmt: skip
@pytest.mark.parametrize("template", [None, MARKED], ids=["prefixes", "markers"])
def test_unusual_orders_of_turns(
    make_tokenizer: Make, template: str | None, conversation: list[str], text: str, mask: str
) -> None:
    tokenizer = make_tokenizer(**({} if template is None else {"template": template}))
    assert shown(tokenizer, {"messages": turns(*conversation)}) == (text, mask)


EMOJI = "👩\u200d👩\u200d👧e\u0301🏳️"


@pytest.mark.parametrize("template", [None, MARKED], ids=["prefixes", "markers"])
def test_letters_over_several_tokens_and_letters_that_join(
    make_tokenizer: Make, template: str | None
) -> None:
    tokenizer = make_tokenizer(**({} if template is None else {"template": template}))
    example = made(tokenizer, {"messages": turns("u:" + EMOJI, "a:" + EMOJI)})
    n = len(EMOJI.encode())  # A token a byte.
    # u : … E / a : … E /
    expected = [False] * (2 + n + 2 + 2) + [True] * (n + 1) + [False]
    assert example.loss_mask.tolist() == expected
    learned = tokenizer.decode(example.tokens[example.loss_mask])
    assert learned == EMOJI + "<e>"


@pytest.mark.parametrize("loss_on", ["assistant", "last"])
def test_a_pair_shares_its_prompt(tokenizer: Any, loss_on: LossOn) -> None:
    asked = turns("u:1", "a:2", "u:3")
    rows: list[dict[str, Any]] = [
        {"prompt": asked, "chosen": turns("a:4"), "rejected": turns("a:56")},
        {"chosen": [*asked, *turns("a:4")], "rejected": [*asked, *turns("a:56")]},
    ]
    for row in rows:
        pair = encode(render(read_record(row), tokenizer, loss_on), tokenizer)
        assert [drawn(tokenizer, side) for side in pair] == [
            ("u:1E/a:2E/u:3E/a:4E/", "                 ^^"),
            ("u:1E/a:2E/u:3E/a:56E/", "                 ^^^"),
        ]


def test_a_pair_of_strings(tokenizer: Any) -> None:
    row = {"prompt": "1+1=", "chosen": "2", "rejected": "3!"}
    pair = encode(render(read_record(row), tokenizer), tokenizer)
    assert [drawn(tokenizer, side) for side in pair] == [
        ("1+1=2E", "    ^^"),
        ("1+1=3!E", "    ^^^"),
    ]


def test_a_pair_whose_prompt_is_a_string_and_whose_answers_are_turns(tokenizer: Any) -> None:
    row = {"prompt": "1", "chosen": turns("a:2"), "rejected": turns("a:3")}
    pair = encode(render(read_record(row), tokenizer), tokenizer)
    assert [drawn(tokenizer, side)[0] for side in pair] == ["u:1E/a:2E/", "u:1E/a:3E/"]


def fault(tokenizer: Any, fields: dict[str, Any], loss_on: LossOn = "assistant") -> str:
    with pytest.raises(UserError) as caught:
        made(tokenizer, fields, loss_on)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_template_that_changes_earlier_turns(make_tokenizer: Make) -> None:
    said = fault(make_tokenizer(UNSTABLE), {"messages": turns("u:1", "a:2", "u:3", "a:4")})
    assert "turn 2 differently once others follow" in said


def test_a_template_that_refuses(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer("{{ raise_exception('roles\nmust alternate') }}")
    said = fault(tokenizer, {"messages": turns("u:1")})
    assert said.startswith("the chat template refuses the conversation (")
    assert "roles must alternate" in said


def test_markers_that_do_not_stand_once_a_turn(make_tokenizer: Make) -> None:
    template = (
        "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    )
    said = fault(make_tokenizer(template), {"messages": CONVERSATION}, "last")
    assert "marks 5 spans for 2 assistant turns" in said


def test_no_template(make_tokenizer: Make) -> None:
    assert "no chat template" in fault(make_tokenizer(None), {"messages": turns("u:1", "a:2")})


def test_no_end_token(make_tokenizer: Make) -> None:
    said = fault(make_tokenizer(eos_token=None), {"text": "ab"})
    assert said.startswith("the tokenizer has no end-of-text token")


def test_half_of_a_surrogate_pair(tokenizer: Any) -> None:
    assert "half of a surrogate pair" in fault(tokenizer, {"text": "\ud800"})


SMOLLM2 = Path(__file__).parents[3] / "models" / "SmolLM2-135M-Instruct"


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="make quickstart brings the model")
def test_a_real_tokenizer_whose_padding_is_its_end_of_turn() -> None:
    from train.hf.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(SMOLLM2)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    asked, answer = "Cinq fois\n\n3 = ?", "15 🙂\n\ne\u0301"
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    example = made(tokenizer, {"messages": messages * 2})
    pieces = [
        f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n",
        f"{answer}<|im_end|>",
        f"\n<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n",
        f"{answer}<|im_end|>",
        "\n",
    ]
    turn = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM"
    assert tokenizer.decode(example.tokens).startswith(turn), "its template adds a system turn"
    edges = [0, *(np.flatnonzero(np.diff(example.loss_mask)) + 1).tolist(), len(example.tokens)]
    parts = [tokenizer.decode(example.tokens[a:b]) for a, b in pairwise(edges)]
    assert parts[0].endswith(pieces[0])
    assert parts[1:] == pieces[1:]
