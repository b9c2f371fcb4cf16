"""A tokenizer's chat template: what it renders, and what can be found out by rendering."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from itertools import takewhile
from typing import Any, Literal, NamedTuple

from transformers.utils.chat_template_utils import render_jinja_template

from ..errors import UserError
from ..hf.bounds import MOST, rendering
from ..hf.time_limit import SECONDS
from . import control
from .records import Fields
from .turns import Turns

Span = tuple[int, int]  # Characters of a text: the first, and the one after the last.

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CLOCK = "strftime_now"
# A template's own clock is replaced by a macro, since transformers lets no function through. The
# line break after it is the one that Jinja removes after a block.
_FIXED_CLOCK = (
    "{% macro strftime_now(format) %}{% set time = namespace(text=format) %}"
    "{% for directive, value in run_started.items() %}"
    "{% set time.text = time.text.replace(directive, value) %}{% endfor %}"
    "{{ time.text }}{% endmacro %}\n"
)
_LETTERS = "aAwdbBmyYHIpMSfzZjUWcxXGuVDFTRe"
_DIRECTIVES = [f"%{flag}{letter}" for flag in ("-", "") for letter in _LETTERS] + ["%%"]

_QUESTION = {"role": "user", "content": "probe question"}
_ANSWER = {"role": "assistant", "content": "probe answer"}
_ARGUMENTS = {"probe_key": "probe value"}


class Form(NamedTuple):
    """How a template wants tool calls.

    Attributes:
      arguments: as an object or as JSON text.
      content: what a call without content has as its content; "absent" is no such key.
    """

    arguments: Literal["object", "text"] = "object"
    content: Literal["", "null", "absent"] = ""


class Template:
    """One of a tokenizer's chat templates.

    Attributes:
      name: the words that an error names it with.
      ends: the tokens that can end a turn.

    Args:
      now: the time that the template is told, if it asks.
    """

    def __init__(self, tokenizer: Any, source: str, name: str, now: datetime) -> None:
        self.name, self._special_tokens = name, dict(tokenizer.special_tokens_map)
        self._is_endless = False
        self.reads_time = _CLOCK in source
        self.has_markers = _MARKER.search(source) is not None
        self._source = _FIXED_CLOCK + source if self.reads_time else source
        if self.reads_time:
            self._special_tokens["run_started"] = _formatted(now)
        added = tokenizer.added_tokens_decoder.values()
        self.ends = tuple(str(token) for token in added)
        self._special = frozenset(str(token) for token in added if token.special)

    def knows(self, key: str) -> bool:
        """Whether the template may read a key of a turn."""
        return key in self._source

    def text(self, turns: Turns, tools: Sequence[Fields] | None, *, prompt: bool = False) -> str:
        """The conversation's text, with the header of an answer to come if `prompt`."""
        return self._render(turns, tools, add_generation_prompt=prompt)[0]

    def text_and_marked(
        self, turns: Turns, tools: Sequence[Fields] | None
    ) -> tuple[str, list[Span]]:
        """The conversation's text, and the spans between its generation markers."""
        return self._render(turns, tools, return_assistant_tokens_mask=True)

    def _render(
        self, turns: Turns, tools: Sequence[Fields] | None, **options: Any
    ) -> tuple[str, list[Span]]:
        if self._is_endless:
            raise UserError(
                f"{self.name} does not end within {SECONDS} seconds; "
                "name another template in model.chat_template"
            )
        try:
            with rendering(SECONDS):
                texts, spans = render_jinja_template(
                    [turns], tools, chat_template=self._source, **options, **self._special_tokens
                )
            if len(texts[0]) > MOST:
                raise ValueError(f"its text has {len(texts[0]):,} characters")
        except TimeoutError:
            self._is_endless = True
            return self._render(turns, tools)
        except Exception as error:  # A template may raise any class of exception.
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self.name} refuses the conversation ({reason}); "
                "correct it, or name another template in model.chat_template"
            ) from None
        return texts[0], [(begin, end) for begin, end in spans[0]] if spans else []

    @cached_property
    def end_of_turn(self) -> str | None:
        """The tokens that end an assistant's turn, whether or not others follow; None: unknown."""
        try:
            last = self.text([_QUESTION, _ANSWER], None)
            middle = self.text([_QUESTION, _ANSWER, _QUESTION], None)
        except UserError:
            return None
        shared = common_prefix(*(text.partition("probe answer")[2] for text in (middle, last)))
        token = control.pattern_of(self.ends)
        run = re.compile(rf"\s*((?:{token.pattern})*)")
        ends, begins = (
            token.findall(found[1]) for found in map(run.match, (shared, last)) if found
        )
        return "".join(takewhile(lambda end: end not in begins, ends)) or None

    @cached_property
    def controls(self) -> frozenset[str]:
        """The tokens that a conversation is built of, and that its contents may only spell.

        These are the special ones, and the others that the template writes around turns. Pairs such
        as <think> and </think> are part of contents.
        """
        try:
            text = self.text([_QUESTION, _ANSWER, _QUESTION], None)
        except UserError:
            text = ""
        built = self._special | {token for token in self.ends if token in text}
        named = {str(token) for token in self._special_tokens.values()}
        return frozenset(t for t in built if t in named or not self._is_of_a_pair(t))

    def _is_of_a_pair(self, token: str) -> bool:
        name = re.fullmatch(r"</?(\w+)>", token)
        return name is not None and {f"<{name[1]}>", f"</{name[1]}>"} <= set(self.ends)

    @cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """A pattern that finds `controls`."""
        return control.pattern_of(self.controls)

    def formed(self, turns: Turns, tools: Sequence[Fields] | None) -> Turns:
        """The turns with their tool calls in the form that the template renders rightly."""
        if not any("tool_calls" in turn for turn in turns):
            return turns
        form = self._form if tools else self._form_without_tools
        return [_formed(turn, form) if "tool_calls" in turn else turn for turn in turns]

    @cached_property
    def renders_tools(self) -> bool:
        """Whether the template describes tools to the model; True where that is not known."""
        try:
            return _PROBE_TOOL["name"] in self.text([_QUESTION], _PROBE_TOOLS)
        except UserError:
            return True

    @cached_property
    def _form(self) -> Form:
        return self._find_form(_PROBE_TOOLS)

    @cached_property
    def _form_without_tools(self) -> Form:
        return self._find_form(None)

    def _find_form(self, tools: Sequence[Fields] | None) -> Form:
        """The first form in which the template renders a call whole, and not as Python's dicts."""
        found: dict[bool, Form] = {}
        for form in _forms():
            call = {"name": "probe_name", "arguments": _ARGUMENTS}
            calls = [{"id": "call00001", "type": "function", "function": call}]
            turn = _formed({"role": "assistant", "tool_calls": calls}, form)
            result = {"role": "tool", "name": "probe_name", "content": "probe result"}
            result["tool_call_id"] = "call00001"
            try:
                text = self.text([_QUESTION, turn, result, _ANSWER], tools)
            except UserError:
                continue
            before = text.rpartition("probe question")[2].partition("probe result")[0]
            words = ("probe_name", "probe_key", "probe value")
            if "None" in before or '\\"probe_key' in before or any(w not in before for w in words):
                continue
            found.setdefault(repr(_ARGUMENTS)[:12] not in before, form)
        return found.get(True) or found.get(False) or Form()


_PROBE_TOOL: dict[str, Any] = {
    "name": "probe_tool",
    "description": "probe description",
    "parameters": {"type": "object", "properties": {"probe_argument": {"type": "string"}}},
}

_PROBE_TOOLS = [{"type": "function", "function": _PROBE_TOOL}]


def _forms() -> Iterator[Form]:
    for arguments in ("object", "text"):
        for content in ("", "null", "absent"):
            yield Form(arguments, content)


def _formed(turn: dict[str, Any], form: Form) -> dict[str, Any]:
    turn = turn | {"tool_calls": [_formed_call(call, form) for call in turn["tool_calls"]]}
    if "content" in turn or form.content == "absent":
        return turn
    return {"role": turn["role"], "content": "" if form.content == "" else None} | turn


def _formed_call(call: Fields, form: Form) -> dict[str, Any]:
    function = dict(call["function"])
    arguments = function.get("arguments")
    if isinstance(arguments, str) and form.arguments == "object":
        function["arguments"] = parse_arguments(arguments)
    elif isinstance(arguments, Mapping) and form.arguments == "text":
        function["arguments"] = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": function}


def parse_arguments(text: str) -> Any:
    """The object that JSON text holds, or the text if it holds none; empty text is no arguments."""
    try:
        value = json.loads(text) if text.strip() else {}
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def common_prefix(one: str, other: str) -> str:
    """The characters that two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    differing = next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
    return one[:differing]


def time_read(source: object, now: datetime) -> str:
    """What templates read of the time, for a digest: equal where their texts are."""
    text = str(source)
    formats = re.findall(_CLOCK + r"""\(\s*(?:\\?['"])(.*?)\\?['"]""", text)
    if len(formats) == len(re.findall(_CLOCK + r"\(", text)):
        return " ".join(now.strftime(format) for format in formats)
    return now.isoformat()


def _formatted(now: datetime) -> dict[str, str]:
    return {directive: now.strftime(directive) for directive in _DIRECTIVES}
