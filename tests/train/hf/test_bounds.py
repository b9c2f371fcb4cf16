"""Chat templates that would take all memory at once are refused before they take it."""

import resource
from collections.abc import Callable
from datetime import datetime
from types import SimpleNamespace

import pytest

from train.data.template import Template
from train.errors import UserError

TOO_MUCH = [
    "{{ 'a' * 10**12 }}",
    "{{ 10**12 * 'a' }}",
    "{{ [0] * 10**12 }}",
    "{{ 10**(10**10) }}",
    "{% set n = namespace(x=3) %}{% for _ in range(40) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**12, 1) }}",
    "{{ '%.1000000000f' | format(1) }}",
    "{{ '{:1000000000d}'.format(1) }}",
    "{{ '{:{}d}'.format(1, 10**12) }}",
    "{{ 'a'.ljust(10**12) }}",
    "{{ 'a'.rjust(width=10**12) }}",
    "{{ 'a'.zfill(10**12) }}",
    "{{ 'a' | center(10**12) }}",
    "{{ 'a' | center(width=10**12) }}",
    "{{ ['a'] | map('center', 10**12) | join }}",
    "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "{{ ('a' * 10**6) | replace('a', 'b' * 10**6) }}",
    "{{ ('a' * 10**6) | replace(old='a', new='b' * 10**6) }}",
    "{{ ('a' * 10**6).replace('', 'b' * 10**6) }}",
    "{{ ('a' * 10**6).join(range(99999) | map('string')) }}",
    "{{ range(99999) | join('a' * 10**6) }}",
    "{{ range(99999) | join(d='a' * 10**6) }}",
    "{{ ('\n' * 10**6) | indent(10**6) }}",
    "{{ ('\n' * 10**6) | indent('a' * 10**6, first=true) }}",
    "{{ [[0] * 10**6] | tojson(indent=10**6) }}",
    "{{ ([0] * 10**6) | tojson(separators=['a' * 10**6, 'b']) }}",
    "{{ 1.5 | round(10**9, 'ceil') }}",
    "{{ ('\t' * 10**6).expandtabs(10**6) }}",
    "{{ ('a' * 10**6).translate({97: 'b' * 10**6}) }}",
    "{{ (1).to_bytes(10**12, 'big') }}",
    "{{ [[0]] * 10**6 | sum(start=[]) }}",
    "{{ lipsum(10**9) }}",
    "{% set x = 'a' * 10**7 %}{{ " + " ~ ".join(["x"] * 9) + " }}",
    "{% set x = 'a' * 10**7 %}{{ " + " + ".join(["x"] * 9) + " }}",
    "{% set x = 'a' * 10**7 %}{% set y %}" + "{{ x }}" * 9 + "{% endset %}",
    "{% set x = 'a' * 10**7 %}{% macro m() %}" + "{{ x }}" * 9 + "{% endmacro %}{{ m() }}",
    "{% set x = 'a' * 10**7 %}{% for _ in range(9999) %}{{ x }}{% endfor %}",
    "{% set x = ['a' * 10**7] * 9999 %}{{ x }}",
    "{% set x = ['a' * 10**7] * 9999 %}{{ x | string }}",
    "{% set x = ['a' * 10**7] * 9999 %}{{ x | tojson }}",
    "{% set x = ['a' * 10**7] * 9999 %}{{ '' ~ x }}",
    "{% set x = ['a' * 10**7] * 9999 %}{{ '%s' % (x,) }}",
    "{% set x = ['a' * 10**7] * 9999 %}{{ '{}'.format(x) }}",
    "{% set x = ['a' * 10**7] * 9999 %}{{ {1: x}.values() }}",
    "{% set x = ['a' * 10**7] * 9999 %}{{ [x] | join }}",
    "{% set x = ['a' * 10**7] * 9999 %}{{ x | replace('b', 'c') }}",
    "{% set n = namespace(x=['a' * 10**7] * 9999) %}{{ n }}",
    "{% set n = namespace(x=[0]) %}{% for _ in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x }}",
    "{% set n = namespace(x='a') %}{% for _ in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for _ in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for _ in range(99) %}"
    "{% set n.x = n.x.replace('a', 'aa') %}{% endfor %}",
]  # fmt: skip


@pytest.fixture
def rendered() -> Callable[..., str]:
    tokenizer = SimpleNamespace(special_tokens_map={}, added_tokens_decoder={})

    def render(source: str, marked: bool = False) -> str:
        template = Template(tokenizer, source, "the template", datetime(2024, 7, 9))
        if marked:
            return template.text_and_marked([], None)[0]
        return template.text([], None)

    return render


@pytest.mark.parametrize("source", TOO_MUCH)
def test_what_would_take_all_memory_is_refused(source: str, rendered: Callable[..., str]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"the template refuses the conversation \(."):
        rendered(source)
    with pytest.raises(UserError, match=r"the template refuses the conversation \(."):
        rendered("{% generation %}a{% endgeneration %}" + source, marked=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**21, "2 GiB"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "{{ '=' * 3 }}{{ 2 * 3 }}{{ 2**3 }}{{ 7 % 4 }}{{ 1 + 2 }}{{ [1] + [2] }}",
            "===6833[1, 2]",
        ),
        ("{{ '%5.1f|%s' % (1, 'é') }}{{ '{:>3}{}'.format(1, none) }}", "  1.0|é  1None"),
        (
            "{{ 'a'.ljust(3) }}{{ 'a' | center(3) }}{{ '7'.zfill(3) }}{{ ' a ' | trim }}",
            "a   a 007a",
        ),
        ("{{ 'aba'.replace('a', 'cc') }}{{ 'aba' | replace('a', 'c', 1) }}", "ccbcccba"),
        (
            "{{ ','.join(['a', 'b']) }}{{ [1, none] | join('-') }}{{ 'abc' | join('.') }}",
            "a,b1-Nonea.b.c",
        ),
        (
            "{{ [{'n': 1}] | map(attribute='n') | join }}{{ [{'n': 1}] | join(attribute='n') }}",
            "11",
        ),
        ("{{ {'a': [1, {'b': none}]} | tojson }}", '{"a": [1, {"b": null}]}'),
        ("{{ {'a': 1} | tojson(indent=2, separators=[',', ':']) }}", '{\n  "a":1\n}'),
        (
            "{{ 'a\nb' | indent(2) }}{{ 'a' ~ 1 ~ none ~ [2] }}{{ x }}{{ true }}",
            "a\n  ba1None[2]True",
        ),
        ("{% set x %}{{ 1 }}b{% endset %}{{ x }}{{ 1.25 | round(1) }}", "1b1.2"),
        ("{{ '100% %d' | length }}{{ 'a%' + 'b' }}{{ {'a': 1}.items() | list }}", "7a%b[('a', 1)]"),
    ],
)
def test_what_is_bounded_renders_as_before(
    source: str, text: str, rendered: Callable[..., str]
) -> None:
    assert rendered(source) == text
