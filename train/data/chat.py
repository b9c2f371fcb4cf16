"""Records as the model's own text, and the characters of it that have a loss."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from transformers.utils.chat_template_utils import render_jinja_template

from ..errors import UserError
from .records import Chat, Fields, Pair, Record, Text, Turns, read_record

# The turns of a conversation that have a loss: the assistant's, its last one, or every turn.
LossOn = Literal["assistant", "last", "everything"]
Span = tuple[int, int]  # Characters of a text: the first, and the one after the last.


class Rendered(NamedTuple):
    """A text for the tokenizer."""

    text: str
    spans: Sequence[Span]  # The characters that have a loss.
    plain: bool  # Whether the tokenizer's beginning and end tokens are still to be added.


@dataclass(frozen=True)
class RecordReader:
    """The settings by which a source's records become texts."""

    format: str | None = None
    columns: Mapping[str, str] | None = None
    loss_on: LossOn = "assistant"

    def render(self, fields: Fields, tokenizer: Any) -> list[Rendered]:
        """Reads and renders one record; raises a UserError without the record's position."""
        return render(read_record(fields, self.format, self.columns), tokenizer, self.loss_on)


def render(record: Record, tokenizer: Any, loss_on: LossOn = "assistant") -> list[Rendered]:
    """Renders a record as one text, or a preference pair as two: chosen, rejected.

    - A conversation goes through the tokenizer's chat template, which writes its own beginning
      token. The loss is on the assistant's turns with the end-of-turn token, without the line break
      that templates put after it.
    - In plain text the loss is on the completion and the end token that will follow it.

    Raises:
      UserError: if the template is missing, raises an error, or does not show which characters are
        the assistant's; without the record's position.
    """
    answers = [record.chosen, record.rejected] if isinstance(record, Pair) else [record]
    return [_render_answer(answer, tokenizer, loss_on) for answer in answers]


def _render_answer(record: Chat | Text, tokenizer: Any, loss_on: LossOn) -> Rendered:
    if isinstance(record, Text):
        text = record.prompt + record.completion
        begin = 0 if loss_on == "everything" else len(record.prompt)
        rendered = Rendered(text, [(begin, len(text))], plain=True)
    else:
        rendered = _render_chat(record, _Template(tokenizer, record.tools), loss_on)
    try:
        rendered.text.encode()
    except UnicodeEncodeError:
        raise UserError(
            "has half of a surrogate pair (\\ud800 to \\udfff) in a string; correct it"
        ) from None
    return rendered


class _Template:
    """The tokenizer's chat template."""

    def __init__(self, tokenizer: Any, tools: Sequence[Fields] | None) -> None:
        if not tokenizer.chat_template:
            raise UserError(
                "is a conversation, but the tokenizer has no chat template; "
                "name a file with one in model.chat_template"
            )
        self._source = tokenizer.get_chat_template(tools=tools)
        self._tools, self._special_tokens = tools, tokenizer.special_tokens_map
        self.has_markers = re.search(r"\{%-?\s*generation\s*-?%\}", self._source) is not None
        # Tokens that can end a turn: none of them is part of a turn's content.
        self.ends = tuple(str(token) for token in tokenizer.added_tokens_decoder.values())

    def text(self, turns: Turns, *, prompt: bool = False) -> str:
        """The conversation's text, with the header of an answer to come if `prompt`."""
        return self._render(turns, add_generation_prompt=prompt)[0]

    def text_and_marked(self, turns: Turns) -> tuple[str, list[Span]]:
        """The conversation's text, and the spans between its generation markers."""
        return self._render(turns, return_assistant_tokens_mask=True)

    def _render(self, turns: Turns, **options: Any) -> tuple[str, list[Span]]:
        try:
            texts, spans = render_jinja_template(
                [turns], self._tools, chat_template=self._source, **options, **self._special_tokens
            )
        except Exception as error:  # A template may raise any class of exception.
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the chat template refuses the conversation ({reason}); "
                "correct it, or name another template in model.chat_template"
            ) from None
        return texts[0], [(begin, end) for begin, end in spans[0]] if spans else []


def _render_chat(chat: Chat, template: _Template, loss_on: LossOn) -> Rendered:
    answers = [number for number, turn in enumerate(chat.turns) if turn["role"] == "assistant"]
    wanted = [number for number in answers if number >= chat.first]
    if loss_on == "last":
        wanted = wanted[-1:]
    if loss_on == "everything":
        text = template.text(chat.turns)
        spans = [(0, len(text))]
    elif template.has_markers:
        text, spans = _marked_spans(chat, template, answers, wanted)
    else:
        text = template.text(chat.turns)
        spans = [_turn_span(chat.turns, number, text, template) for number in wanted]
    return Rendered(text, [_through_end(span, text, template) for span in spans], plain=False)


def _marked_spans(
    chat: Chat, template: _Template, answers: list[int], wanted: list[int]
) -> tuple[str, list[Span]]:
    text, spans = template.text_and_marked(chat.turns)
    if wanted == answers:
        return text, spans
    if len(spans) != len(answers):
        raise UserError(
            f"the chat template marks {len(spans)} spans for {len(answers)} assistant turns, so "
            "one turn cannot be told from another; set data.loss_on to assistant, or name another "
            "template in model.chat_template"
        )
    return text, [span for number, span in zip(answers, spans, strict=True) if number in wanted]


def _turn_span(turns: Turns, number: int, text: str, template: _Template) -> Span:
    """The span of one assistant turn in the text of the whole conversation.

    It is the difference of two renderings: the conversation before the turn, with the header of an
    answer, and the conversation through the turn.
    """
    if number:
        before = template.text(turns[:number], prompt=True)
    else:  # An empty conversation cannot be rendered: find the header after a default system turn.
        question: Turns = [{"role": "user", "content": "?"}]
        header = template.text(question, prompt=True).removeprefix(template.text(question))
        before = text[: text.find(header)] + header
    last = number == len(turns) - 1
    through = text if last else template.text(turns[: number + 1])
    if not (text.startswith(through) and through.startswith(before)):
        raise UserError(
            f"the chat template renders turn {number + 1} differently once others follow "
            "or it is to be generated, so its tokens cannot be told apart; name a template with "
            "{% generation %} markers in model.chat_template"
        )
    return len(before), len(_without_break(through, template))


def _without_break(text: str, template: _Template) -> str:
    """The text without white space after an end-of-turn token; other white space ends the turn."""
    stripped = text.rstrip()
    return stripped if stripped.endswith(template.ends) else text


def _through_end(span: Span, text: str, template: _Template) -> Span:
    """The span with the end-of-turn token that follows it, unless it holds one already."""
    begin, end = span
    if text[begin:end].endswith(template.ends):
        return span
    following = [token for token in template.ends if text.startswith(token, end)]
    return begin, end + max(map(len, following), default=0)
