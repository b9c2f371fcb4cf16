"""What a chat template wants is found by rendering."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from train.data.template import Template, time_read
from train.errors import UserError

NOW = datetime(2024, 7, 9, 5, 6, 7)
HEAD = "{% for m in messages %}{{ m['role'][0] }}:"
CALLS = "{% for c in m['tool_calls'] or [] %}({{ c['function']['name'] }} ARGS){% endfor %}"
TAIL = "<e>\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
WANTS_OBJECT = HEAD + "{{ m['content'] }}" + CALLS + TAIL
FORMS = {
    "object": WANTS_OBJECT.replace("ARGS", "{{ c['function']['arguments'] | tojson }}"),
    "text": WANTS_OBJECT.replace("ARGS", "{{ c['function']['arguments'] }}"),
    "items": WANTS_OBJECT.replace(
        "ARGS", "{% for k, v in c['function']['arguments'].items() %}{{ k }}={{ v }}{% endfor %}"
    ),
    "text or pairs": WANTS_OBJECT.replace(
        "ARGS",
        "{% set given = c['function']['arguments'] %}{% if given is string %}[{{ given }}]"
        "{% else %}{% for k, v in given | items %}{{ k }}={{ v }}{% endfor %}{% endif %}",
    ),
    "null": HEAD
    + "{% if m['content'] is none %}"
    + CALLS.replace("ARGS", "{{ c['function']['arguments'] }}")
    + "{% else %}{{ m['content'] }}{% endif %}"
    + TAIL,
    "absent": HEAD
    + "{% if m['content'] is defined %}{{ m['content'] }}{% else %}"
    + CALLS.replace("ARGS", "{{ c['function']['arguments'] | tojson }}")
    + "{% endif %}"
    + TAIL,
}
CALL = {"function": {"name": "add", "arguments": {"a": 3, "b": "é"}}}
AS_TEXT = {"function": {"name": "add", "arguments": '{"a": 3, "b": "é"}'}}


@pytest.fixture
def template(make_tokenizer: Callable[..., Any]) -> Callable[..., Template]:
    return lambda source: Template(make_tokenizer(source), source, "the chat template", NOW)


@pytest.mark.parametrize("call", [CALL, AS_TEXT], ids=["object", "JSON text"])
@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("object", 'a:(add {"a": 3, "b": "é"})<e>\n'),
        ("text", 'a:(add {"a": 3, "b": "é"})<e>\n'),
        ("items", "a:(add a=3b=é)<e>\n"),
        ("null", 'a:(add {"a": 3, "b": "é"})<e>\n'),
        ("text or pairs", "a:(add a=3b=é)<e>\n"),
        ("absent", 'a:(add {"a": 3, "b": "é"})<e>\n'),
    ],
)
def test_calls_are_given_in_the_form_that_is_rendered_rightly(
    template: Callable[..., Template], form: str, call: Any, text: str
) -> None:
    made = template(FORMS[form])
    turns = made.formed([{"role": "assistant", "tool_calls": [call]}], None)
    assert made.text(turns, None) == text


@pytest.mark.parametrize(
    ("source", "end"),
    [
        (FORMS["object"], "<e>"),
        (FORMS["object"].replace("<e>", ""), None),
        (FORMS["object"] + "{% if not add_generation_prompt %}<pad>{% endif %}", "<e>"),
        (FORMS["object"].replace("<e>", "{% if loop.last %}<e>{% else %}<pad>{% endif %}"), None),
        (FORMS["object"].replace("<e>", "<e><s>"), "<e><s>"),
        ("<pad>" + FORMS["object"].replace("<e>", "<e><pad>"), "<e>"),
        ("{{ raise_exception('no') }}", None),
    ],
)
def test_the_end_of_a_turn(template: Callable[..., Template], source: str, end: str | None) -> None:
    assert template(source).end_of_turn == end


def test_a_template_that_does_not_end(
    template: Callable[..., Template], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.data.template.SECONDS", 0.2)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    endless = template(loops)
    for _ in range(9):  # It is waited for once.
        with pytest.raises(UserError, match=r"the chat template does not end within 0.2 seconds"):
            endless.text([], None)
    assert template(FORMS["object"]).text([], None) == ""


def test_a_template_that_takes_ever_more_memory(
    template: Callable[..., Template], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.hf.time_limit.MEMORY", 1 << 28)
    lists = "{% set n = namespace(x=[]) %}{% for _ in range(99999) %}"
    lists += "{% set n.x = [n.x, range(99999) | list] %}{% endfor %}"
    with pytest.raises(UserError, match=r"it takes 0.25 GiB of memory"):
        template(lists).text([], None)


def test_the_time_is_the_runs(template: Callable[..., Template]) -> None:
    asked = "{{ 'On ' + strftime_now('%-d %b %Y, %H:%M%%') }}"
    source = "{% if strftime_now is defined %}" + asked + "{% endif %}"
    assert template(source).text([], None) == "On 9 Jul 2024, 05:06%"
    assert (
        template("\n  {% if true %}x{% endif %}{% set n = strftime_now %}").text([], None) == "\nx"
    )


def test_a_digest_holds_what_is_read_of_the_time() -> None:
    later = NOW.replace(hour=9)
    for source, equal in [
        ("{{ strftime_now('%d') }}{{ strftime_now( \"%b\") }}", True),
        ("{{ strftime_now('%H') }}", False),
        ("{{ strftime_now(format) }}", False),
        ("{{ messages }}", True),
    ]:
        assert (time_read(source, NOW) == time_read(source, later)) is equal
