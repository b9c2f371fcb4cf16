"""Conversations as one text or several: each answer is learned as the model has to write it."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from train.data.chat import FORGETS, SPLIT, RecordReader, Renderer
from train.data.tokenize import encode
from train.errors import UserError

Make = Callable[..., Any]
Draw = Callable[..., list[tuple[str, str]]]

PROMPT = "{% if add_generation_prompt %}a:{% endif %}"
# Thoughts, or empty ones, are shown after the last question only, as Qwen3 does.
FORGETFUL = (
    "{% set last = namespace(user=-1) %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ m['role'][0] }}:{% set answer = m['content'] or '' %}"
    "{% set thought = m['reasoning_content'] or '' %}{% if '</think>' in answer %}"
    "{% set thought = answer.split('</think>')[0].split('<think>')[-1] %}"
    "{% set answer = answer.split('</think>')[-1] %}{% endif %}"
    "{% if m['role'] == 'assistant' and loop.index0 > last.user %}[{{ thought }}]{% endif %}"
    "{{ answer }}{% for c in m['tool_calls'] or [] %}({{ c['function']['name'] }}){% endfor %}<e>\n"
    "{% endfor %}" + PROMPT
)
# A token ends the text, unless an answer is to come, as in Phi-3's template.
END_OF_TEXT = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}<e>\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% else %}<pad>{% endif %}"
)
# The last answer ends with a token of its own, as in gpt-oss's template.
LAST_END = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}"
    "{% if loop.last and m['role'] == 'assistant' %}<e>{% else %}<pad>{% endif %}{% endfor %}"
    + PROMPT
)
# The system's words stand before the last question.
MOVES_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'][0] }}:"
    "{% if m['role'] == 'user' and messages[loop.index:] | selectattr('role', 'equalto', 'user')"
    " | list | length == 0 %}[{{ messages[0]['content'] }}]{% endif %}"
    "{{ m['content'] }}<e>\n{% endif %}{% endfor %}" + PROMPT
)
# Where an answer is to come, a thought is opened, as in Nemotron's template.
THOUGHTFUL = (
    "{% for m in messages %}{{ m['role'][0] }}:{% if m['role'] == 'assistant' %}"
    "{% set thought = m['reasoning_content'] or '/' %}{{ '<' + thought + '>' }}{% endif %}"
    "{{ m['content'] }}<e>\n{% endfor %}{% if add_generation_prompt %}a:\n<?{% endif %}"
).replace("{{ m['role'][0] }}:{%", "{{ m['role'][0] }}:{{ '\n' if m['role'] == 'assistant' }}{%")
GENERATION = "{% if m['role'] == 'assistant' %}{% generation %}X{% endgeneration %}{% endif %}"
MARKED = (
    "{% for m in messages %}<s>{{ m['role'][0] }}:{% if m['role'] != 'assistant' %}"
    "{{ m['content'] }}<e>\n{% endif %}" + GENERATION + "{% endfor %}" + PROMPT
)
MARKED_END = "{% if not add_generation_prompt and messages[-1]['role'] == 'assistant' %}"
MARKED_END += "{% generation %}<pad>{% endgeneration %}{% endif %}"


@pytest.fixture
def draw_all(make_tokenizer: Make, turns: Make, draw: Make) -> Draw:
    def draw_all(template: str, messages: list[Any], **settings: Any) -> list[tuple[str, str]]:
        tokenizer = make_tokenizer(template)
        given = [turns(turn)[0] if isinstance(turn, str) else turn for turn in messages]
        rendered = Renderer(RecordReader(**settings), tokenizer).render({"messages": given})
        return [draw(tokenizer, example) for example in encode(rendered, tokenizer)]

    return draw_all


THINKS = {"role": "assistant", "content": "2", "reasoning_content": "x"}
CALLS = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}


@pytest.mark.parametrize(
    ("template", "messages", "texts"),
    [
        pytest.param(
            FORGETFUL, ["u:1", "a:2", "u:3", "a:4"],
            [("u:1E/a:[]2E/",
              "       ^^^^"),
             ("u:1E/a:2E/u:3E/a:[]4E/",
              "                 ^^^^")], id="no thoughts",
        ),
        pytest.param(
            FORGETFUL, ["u:1", "a:<think>x</think>2", "u:3", "a:<think>y</think>4"],
            [("u:1E/a:[x]2E/",
              "       ^^^^^"),
             ("u:1E/a:2E/u:3E/a:[y]4E/",
              "                 ^^^^^")], id="thoughts in the content",
        ),
        pytest.param(
            FORGETFUL, ["u:1", THINKS, "u:3", THINKS, "u:5"],
            [("u:1E/a:[x]2E/",
              "       ^^^^^"),
             ("u:1E/a:2E/u:3E/a:[x]2E/",
              "                 ^^^^^")], id="thoughts in a key, and an open question",
        ),
        pytest.param(
            FORGETFUL, ["u:1", CALLS, "t:7", THINKS],
            [("u:1E/a:[](f)E/t:7E/a:[x]2E/",
              "       ^^^^^^        ^^^^^")], id="answers after one question share a text",
        ),
        pytest.param(
            END_OF_TEXT, ["u:1", "a:2", "u:3", "a:4"],
            [("u:1E/a:2E/u:3E/a:4E/P",
              "       ^^        ^^")], id="a token that ends the text is no end of turn",
        ),
        pytest.param(
            LAST_END, ["u:1", "a:2", "u:3", "a:4"],
            [("u:1Pa:2E",
              "      ^^"),
             ("u:1Pa:2Pu:3Pa:4E",
              "              ^^")], id="the last answer ends otherwise",
        ),
        pytest.param(
            MOVES_SYSTEM, ["s:x", "u:1", "a:2", "u:3", "a:4"],
            [("u:[x]1E/a:2E/",
              "          ^^"),
             ("u:1E/a:2E/u:[x]3E/a:4E/",
              "                    ^^")], id="the system's words move on",
        ),
        pytest.param(
            MARKED.replace("X", "{{ m['content'] }}<e>\n"), ["u:1", "a:2", "u:3", "a:4"],
            [("Su:1E/Sa:2E/Su:3E/Sa:4E/",
              "         ^^          ^^")], id="markers around the end of turn and the line break",
        ),
        pytest.param(
            MARKED.replace("X", "{{ m['content'] }}").replace(
                "{% endgeneration %}", "{% endgeneration %}<e>\n"), ["u:1", "a:2", "u:3", "a:4"],
            [("Su:1E/Sa:2E/Su:3E/Sa:4E/",
              "         ^^          ^^")], id="markers around the content alone",
        ),
        pytest.param(
            MARKED.replace("X", "{{ m['content'] }}\n"), ["u:1", "a:2", "u:3", "a:4"],
            [("Su:1E/Sa:2/Su:3E/Sa:4/",
              "         ^^         ^^")], id="markers, and the token of the next turn",
        ),
        pytest.param(
            THOUGHTFUL, ["u:1", "a:2", "u:3", THINKS],
            [("u:1E/a:/</>2E/u:3E/a:/<x>2E/",
              "        ^^^^^         ^^^^^")], id="a prompt that opens a thought",
        ),
        pytest.param(
            MARKED.replace("X", "{{ m['content'] }}<e>\n") + MARKED_END,
            ["u:1", "a:2", "u:3", "a:4"],
            [("Su:1E/Sa:2E/Su:3E/Sa:4E/P",
              "         ^^          ^^")], id="markers around a token that ends the text",
        ),
        pytest.param(
            MARKED.replace("X", "{% if loop.last %}[{{ m['content'] }}]<e>{% endif %}"),
            ["u:1", "a:2"],
            [("Su:1E/Sa:[2]E",
              "         ^^^^")], id="markers in the last turn alone",
        ),
    ],
)  # fmt: skip
def test_texts_and_masks(
    draw_all: Draw, template: str, messages: list[Any], texts: list[tuple[str, str]]
) -> None:
    assert draw_all(template, messages) == texts


def test_untrained_turns_are_not_learned(draw_all: Draw) -> None:
    wrong = {"role": "assistant", "content": "2", "weight": 0}
    [(text, mask)] = draw_all(END_OF_TEXT, ["u:1", wrong, "u:3", "a:4"])
    assert (text, mask) == ("u:1E/a:2E/u:3E/a:4E/P", "                 ^^")
    [(_, mask)] = draw_all(END_OF_TEXT, ["u:1", wrong, "u:3", "a:4"], loss_on="everything")
    assert mask == "^^^^^^^  ^^^^^^^^^^^^"
    assert draw_all(FORGETFUL, ["u:1", wrong, "u:3", "a:4"]) == [
        ("u:1E/a:2E/u:3E/a:[]4E/", "                 ^^^^")
    ]


def test_what_is_to_be_known_of_a_text(make_tokenizer: Make, turns: Make) -> None:
    renderer = Renderer(RecordReader(), make_tokenizer(FORGETFUL))
    answers = ["a:<think>x</think>2", "a:<think>y</think>4"]
    several = renderer.render({"messages": turns("u:1", answers[0], "u:3", answers[1])})
    assert [text.notes for text in several] == [SPLIT, SPLIT | FORGETS]
    assert several[0].record_digest == several[1].record_digest
    [alone] = renderer.render({"messages": turns("u:1", answers[0])})
    assert alone.notes == 0
    assert alone.record_digest != several[0].record_digest


@pytest.mark.parametrize(
    ("template", "messages", "said"),
    [
        (
            END_OF_TEXT,
            ["u:1", CALLS],
            "leaves out turn 2, tool_calls or function_call: the call of 'f': name a",
        ),
        (END_OF_TEXT, ["u:1", THINKS], "turn 2, reasoning_content: name a template that renders "),
        (END_OF_TEXT, ["u:1", THINKS], "set data.ignore to [reasoning_content], or remove"),
        (
            MARKED.replace("X", "{% if not loop.first %}{% endif %}"),
            ["u:1", "a:2"],
            "leaves out turn 2, content",
        ),
        (
            MARKED.replace(GENERATION, "{% if false %}" + GENERATION + "{% endif %}"),
            ["u:1", "a:2"],
            "marks no part of turn 2 with {% generation %}",
        ),
        (
            END_OF_TEXT.replace("%}a:{%", "%}a:[{%"),
            ["u:1", "a:2"],
            "begins turn 2 differently where it is to be generated",
        ),
    ],
)
def test_what_cannot_be_learned(
    draw_all: Draw, template: str, messages: list[Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        draw_all(template, messages)
    assert said in str(caught.value)


def test_tools_that_are_not_described(make_tokenizer: Make, turns: Make) -> None:
    """A name that the question happens to hold is no description."""
    row = {"messages": turns("u:add 1", "a:2"), "tools": [{"name": "add", "parameters": {}}]}
    with pytest.raises(UserError, match=r"leaves out tools: name a template .* to \[tools\], or"):
        Renderer(RecordReader(), make_tokenizer(END_OF_TEXT)).render(row)
    [rendered] = Renderer(RecordReader(ignore=("tools",)), make_tokenizer(END_OF_TEXT)).render(row)
    assert rendered.text.startswith("u:add 1")


def test_each_answer_follows_what_the_model_is_given(make_tokenizer: Make, turns: Make) -> None:
    """Every learned span begins where the template's own prompt for it ends."""
    tokenizer = make_tokenizer(FORGETFUL)
    messages = turns("u:1", "a:2", "u:3", "a:4", "u:5", "a:6")
    rendered = Renderer(RecordReader(), tokenizer).render({"messages": messages})
    assert len(rendered) == 3
    for text, before in zip(rendered, (1, 3, 5), strict=True):
        prompt = tokenizer.apply_chat_template(
            messages[:before], tokenize=False, add_generation_prompt=True
        )
        ((begin, end),) = text.spans
        assert text.text[:begin] == prompt
        assert text.text[end:] == "\n"
    assert all(a.text[: a.spans[0][0]] != b.text[: b.spans[0][0]] for a, b in pairwise(rendered))
