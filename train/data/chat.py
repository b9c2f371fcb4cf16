"""From a record to the model's own text, and which characters of it are learned."""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from transformers.utils.chat_template_utils import render_jinja_template

from ..errors import UserError
from .records import Chat, Pair, Record, Text, Turns

# What is learned of a conversation: the assistant's turns, the last of them, or all that is said.
LossOn = Literal["assistant", "last", "everything"]
Span = tuple[int, int]  # Characters of a text: from, and up to but not including.


class Rendered(NamedTuple):
    """A text for the tokenizer."""

    text: str
    spans: Sequence[Span]  # What is learned.
    bare: bool  # Whether the tokenizer's beginning and end tokens are still to be put around it.


def render(record: Record, tokenizer: Any, loss_on: LossOn = "assistant") -> list[Rendered]:
    """The texts that a record stands for: one, or a pair's chosen and rejected one.

    - A conversation goes through the tokenizer's chat template, which writes its own beginning
      token. Learned are the assistant's turns with the end-of-turn token, without the line break
      that templates put after it.
    - Of plain text the completion is learned, and the end token that will follow it.

    Raises:
      UserError: where the template is missing or refuses, or does not show which characters are
        the assistant's; without the record's place.
    """
    if isinstance(record, Pair):
        return [_one(side, tokenizer, loss_on) for side in (record.chosen, record.rejected)]
    return [_one(record, tokenizer, loss_on)]


def _one(record: Chat | Text, tokenizer: Any, loss_on: LossOn) -> Rendered:
    if isinstance(record, Text):
        text = record.prompt + record.completion
        begin = 0 if loss_on == "everything" else len(record.prompt)
        made = Rendered(text, [(begin, len(text))], bare=True)
    else:
        made = _chat(record, _Template(tokenizer, record.tools), loss_on)
    try:
        made.text.encode()
    except UnicodeEncodeError:
        raise UserError(
            "has half of a surrogate pair (\\ud800 to \\udfff) in a string; correct it"
        ) from None
    return made


class _Template:
    """The tokenizer's chat template, and the texts it has made of a conversation's beginnings."""

    def __init__(self, tokenizer: Any, tools: Any) -> None:
        if not tokenizer.chat_template:
            raise UserError(
                "is a conversation, but the tokenizer has no chat template; "
                "name a file with one in model.chat_template"
            )
        self._source = tokenizer.get_chat_template(tools=tools)
        self._tools, self._names = tools, tokenizer.special_tokens_map
        self.marked = re.search(r"\{%-?\s*generation\s*-?%\}", self._source) is not None
        # Tokens that can end a turn: none of them is part of what somebody says.
        self.ends = tuple(str(token) for token in tokenizer.added_tokens_decoder.values())

    def text(self, turns: Turns, *, prompt: bool = False) -> str:
        """The conversation, ready for an answer or not."""
        return self._render(turns, add_generation_prompt=prompt)[0]

    def marks(self, turns: Turns) -> tuple[str, list[Span]]:
        """The conversation, and what stands between its generation markers."""
        return self._render(turns, return_assistant_tokens_mask=True)

    def _render(self, turns: Turns, **options: Any) -> tuple[str, list[Span]]:
        try:
            texts, spans = render_jinja_template(
                [turns], self._tools, chat_template=self._source, **options, **self._names
            )
        except Exception as error:  # A template raises what it likes.
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the chat template refuses the conversation ({reason}); "
                "correct it, or name another template in model.chat_template"
            ) from None
        return texts[0], [(begin, end) for begin, end in spans[0]] if spans else []


def _chat(chat: Chat, template: _Template, loss_on: LossOn) -> Rendered:
    numbers = [number for number, turn in enumerate(chat.turns) if turn["role"] == "assistant"]
    wanted = [number for number in numbers if number >= chat.first]
    if loss_on == "last":
        wanted = wanted[-1:]
    if loss_on == "everything":
        text = template.text(chat.turns)
        spans = [(0, len(text))]
    elif template.marked:
        text, spans = _marked_spans(chat, template, numbers, wanted)
    else:
        text = template.text(chat.turns)
        spans = [_span(chat.turns, number, text, template) for number in wanted]
    return Rendered(text, [_through_end(span, text, template) for span in spans], bare=False)


def _marked_spans(
    chat: Chat, template: _Template, numbers: list[int], wanted: list[int]
) -> tuple[str, list[Span]]:
    text, spans = template.marks(chat.turns)
    if wanted == numbers:
        return text, spans
    if len(spans) != len(numbers):
        raise UserError(
            f"the chat template marks {len(spans)} pieces of {len(numbers)} assistant turns, so "
            "one turn cannot be told from another; learn all of them, or name another template "
            "in model.chat_template"
        )
    return text, [span for number, span in zip(numbers, spans, strict=True) if number in wanted]


def _span(turns: Turns, number: int, text: str, template: _Template) -> Span:
    """Which characters of the whole conversation's text are an assistant's turn.

    What the template adds by that turn shows by rendering the conversation up to it, ready for
    an answer, and through it.
    """
    if number:
        before = template.text(turns[:number], prompt=True)
    else:  # Nothing cannot be rendered: the header is looked for, past a system turn by default.
        question: Turns = [{"role": "user", "content": "?"}]
        asked = template.text(question)
        header = template.text(question, prompt=True).removeprefix(asked)
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
    """Leaves out white space after an end-of-turn token; elsewhere, it is the end of the turn."""
    bare = text.rstrip()
    return bare if bare.endswith(template.ends) else text


def _through_end(span: Span, text: str, template: _Template) -> Span:
    """Takes in the end-of-turn token where the turn was told to end right before it."""
    begin, end = span
    if text[begin:end].endswith(template.ends):
        return span
    following = [token for token in template.ends if text.startswith(token, end)]
    return begin, end + max(map(len, following), default=0)
