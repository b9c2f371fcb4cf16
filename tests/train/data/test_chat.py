"""Loss masks, token by token: ^ stands under what is learned."""

from collections.abc import Callable
from typing import Any

import pytest

from train.data.chat import LossOn

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
    turns: Make,
    draw_record: Make,
    template: str | None,
    conversation: list[str],
    text: str,
    mask: str,
    pad: str,
    adds_bos: bool,
) -> None:
    options = {} if template is None else {"template": template}
    tokenizer = make_tokenizer(**options, pad_token=pad, adds_bos=adds_bos)
    assert draw_record(tokenizer, {"messages": turns(*conversation)}) == (text, mask)


def test_letters_of_several_bytes(tokenizer: Any, turns: Make, encode_record: Make) -> None:
    example = encode_record(tokenizer, {"messages": turns("u:é", "a:🙂")})
    # u : é(2) E / a : 🙂(4) E /
    assert example.loss_mask.tolist() == [False] * 8 + [True] * 5 + [False]


def test_a_token_over_the_header_and_the_answer_is_the_headers(
    turns: Make, encode_record: Make
) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {"u": 0, ":": 1, "a": 2, "\n": 3, ".": 4, "\n\n": 5, "x": 6}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[("\n", "\n")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}\n{{ m['content'] }}.{% endfor %}"
        "{% if add_generation_prompt %}a\n{% endif %}"
    )
    example = encode_record(tokenizer, {"messages": turns("u:x", "a:\nx")})
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
            {"prompt": ["u:1", "a:2", "u:3"], "completion": ["a:4"]},
            "u:1E/a:2E/u:3E/a:4E/",
            "                 ^^",
        ),
        (
            {"template": MARKED},
            {"prompt": ["u:1", "a:2", "u:3"], "completion": ["a:4"]},
            "u:1E/a:2E/u:3E/a:4E/",
            "                 ^^",
        ),
        ({}, {"messages": ["u:1", "a:2"], "prompt": "no"}, "u:1E/a:2E/", "       ^^"),
        ({}, {"messages": None, "prompt": None, "text": "ab"}, "abE", "^^^"),
    ],
)  # fmt: skip
def test_completions_and_text(
    make_tokenizer: Make,
    turns: Make,
    draw_record: Make,
    options: dict[str, Any],
    fields: dict[str, Any],
    text: str,
    mask: str,
) -> None:
    fields = {k: turns(*v) if isinstance(v, list) else v for k, v in fields.items()}
    form = "completion" if isinstance(fields.get("completion"), str) else None
    assert draw_record(make_tokenizer(**options), fields, format=form) == (text, mask)


def test_a_doubled_beginning_token_is_made_one(
    make_tokenizer: Make, turns: Make, draw_record: Make
) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}<e>{% endfor %}"
    tokenizer = make_tokenizer(template, adds_bos=True)
    said = draw_record(tokenizer, {"messages": turns("u:<s>hi", "a:y")}, control_tokens="keep")
    assert said[0] == "ShiEyE"
    assert draw_record(tokenizer, {"text": "<s><s>hi"})[0] == "ShiE"


CONVERSATION = ["u:1", "a:2", "u:3", "a:45", "u:6"]


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
    make_tokenizer: Make,
    turns: Make,
    draw_record: Make,
    template: str | None,
    loss_on: LossOn,
    mask: str,
) -> None:
    tokenizer = make_tokenizer(**({} if template is None else {"template": template}))
    text = "u:1E/a:2E/u:3E/a:45E/u:6E/"
    fields = {"messages": turns(*CONVERSATION)}
    assert draw_record(tokenizer, fields, loss_on) == (text, mask[: len(text)])


def test_everything_of_a_prompt_is_learned_too(tokenizer: Any, draw_record: Make) -> None:
    fields = {"prompt": "1+1=", "completion": "2"}
    assert draw_record(tokenizer, fields, "everything", format="completion") == ("1+1=2E", "^^^^^^")


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
    make_tokenizer: Make,
    turns: Make,
    draw_record: Make,
    template: str | None,
    conversation: list[str],
    text: str,
    mask: str,
) -> None:
    tokenizer = make_tokenizer(**({} if template is None else {"template": template}))
    assert draw_record(tokenizer, {"messages": turns(*conversation)}) == (text, mask)


EMOJI = "👩\u200d👩\u200d👧e\u0301🏳️"


@pytest.mark.parametrize("template", [None, MARKED], ids=["prefixes", "markers"])
def test_letters_over_several_tokens_and_letters_that_join(
    make_tokenizer: Make, turns: Make, encode_record: Make, template: str | None
) -> None:
    tokenizer = make_tokenizer(**({} if template is None else {"template": template}))
    example = encode_record(tokenizer, {"messages": turns("u:" + EMOJI, "a:" + EMOJI)})
    n = len(EMOJI.encode())  # A token a byte.
    # u : … E / a : … E /
    expected = [False] * (2 + n + 2 + 2) + [True] * (n + 1) + [False]
    assert example.loss_mask.tolist() == expected
    learned = tokenizer.decode(example.tokens[example.loss_mask])
    assert learned == EMOJI + "<e>"
