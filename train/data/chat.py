"""Records as the model's own text, and the characters of it that have a loss."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

from ..config.data import ControlTokens, DataSection, Source
from ..errors import UserError
from . import control
from .conversation import RenderedChat, render_chat
from .records import Chat, Fields, Pair, Reading, Record, Text, is_empty, understand_record
from .template import Span, Template

# The turns of a conversation that have a loss: the assistant's, its last one, or every turn.
LossOn = Literal["assistant", "last", "everything"]

EQUAL_ANSWERS = "has equal answers in chosen and rejected; correct it or remove the record"

# Bits of Rendered.notes.
PAIR = 1  # One answer of a preference pair.
SPLIT = 2  # One of the several examples of a conversation.
CONTROL = 4  # The contents spell control tokens.
FORGETS = 8  # The template leaves out thoughts of earlier turns.

# What is said of the examples that have a bit.
NOTES = {
    SPLIT: "from conversations that the chat template makes several examples of",
    CONTROL: "whose contents spell control tokens (data.control_tokens)",
    FORGETS: "without thoughts of earlier turns",
}


class Rendered(NamedTuple):
    """A text for the tokenizer.

    Attributes:
      text: with the control tokens of the template.
      spans: the characters that have a loss.
      plain: whether the tokenizer's beginning and end tokens are still to be added.
      spelled: the characters that look like control tokens and are ordinary text.
      notes: bits that say what is to be known of it.
      record_digest: equal for records that mean the same, whatever the template.
    """

    text: str
    spans: Sequence[Span]
    plain: bool
    spelled: Sequence[Span] = ()
    notes: int = 0
    record_digest: int = 0


@dataclass(frozen=True)
class RecordReader:
    """The settings by which a source's records become texts."""

    format: str | None = None
    columns: Mapping[str, str] | None = None
    loss_on: LossOn = "assistant"
    ignore: tuple[str, ...] = ()
    control_tokens: ControlTokens = "text"
    now: datetime | None = field(default=None, repr=False)  # What templates read of the time.

    @classmethod
    def of(cls, source: Source, data: DataSection, now: datetime | None = None) -> "RecordReader":
        """The settings of a source."""
        return cls(
            source.format, source.columns or None, data.loss_on, data.ignore, data.control_tokens,
            now,
        )  # fmt: skip


class Understood(NamedTuple):
    """How records were read, and whether a chat template was applied."""

    reading: Reading
    templated: bool


class Renderer:
    """Renders a source's records with a tokenizer.

    Attributes:
      understood: how the records were read, each way with the number of records.
    """

    def __init__(self, reader: RecordReader, tokenizer: Any) -> None:
        self._reader, self._tokenizer = reader, tokenizer
        self._now = reader.now or datetime.now()
        self._templates: dict[str, Template] = {}
        self.understood: Counter[Understood] = Counter()

    def render(self, fields: Fields) -> list[Rendered]:
        """Reads and renders one record, as one text or several.

        - A conversation goes through the tokenizer's chat template, which writes its own beginning
          token. The loss is on the assistant's turns with the end-of-turn token, without the line
          break that templates put after it. Where the template renders an answer differently once
          other turns follow, the conversation is several texts.
        - In plain text the loss is on the completion and the end token that will follow it.
        - A preference pair is two texts: chosen, rejected.

        Raises:
          UserError: if the record cannot be read, or the template is missing, raises an error, does
            not show which characters are the assistant's, or leaves out something of the record;
            without the record's position.
        """
        reader = self._reader
        record, reading = understand_record(fields, reader.format, reader.columns, reader.ignore)
        rendered = self._render(record)
        self.understood[Understood(reading, not rendered[0].plain)] += 1
        digest = _digest(_prompt(record) if isinstance(record, Pair) else record)
        return [text._replace(record_digest=digest) for text in rendered]

    def _render(self, record: Record) -> list[Rendered]:
        if not isinstance(record, Pair):
            self._ask_for_template(record)
            return self._render_answer(record)
        answers = {"chosen": record.chosen, "rejected": record.rejected}
        if record.chosen == record.rejected:
            raise UserError(EQUAL_ANSWERS)
        for name, answer in answers.items():
            if is_empty(answer):
                raise UserError(f"has an empty answer in {name}; write it or remove the record")
        self._ask_for_template(record.chosen, pair=True)
        both = [self._render_answer(answer) for answer in answers.values()]
        if any(len(texts) != 1 for texts in both):
            raise UserError(
                "is a preference pair, and the chat template renders its answers differently once "
                "others follow; set data.loss_on to last, or name another template in "
                "model.chat_template"
            )
        prompts = {text.text[: text.spans[0][0]] for [text] in both if text.spans}
        if len(prompts) > 1 and self._reader.loss_on != "everything":
            raise UserError(
                "has answers to two different prompts in chosen and rejected; give both the same "
                "turns before their answers, or remove the record"
            )
        return [text._replace(notes=text.notes | PAIR) for [text] in both]

    def _render_answer(self, record: Chat | Text) -> list[Rendered]:
        if isinstance(record, Text):
            rendered = [self._render_text(record)]
        else:
            rendered = self._render_chat(record)
        try:
            for part in rendered:
                part.text.encode()
        except UnicodeEncodeError:
            raise UserError(
                "has half of a surrogate pair (\\ud800 to \\udfff) in a string; correct it"
            ) from None
        return rendered

    def _ask_for_template(self, record: Chat | Text, pair: bool = False) -> None:
        if isinstance(record, Chat) or self._reader.format is not None:
            return
        if pair and self._tokenizer.chat_template:
            raise UserError(
                "has strings as prompt, chosen and rejected, and the model has a chat template: "
                "set data.format to preference to train on them as they are, or write each as a "
                "list of turns to make conversations of them"
            )
        if record.prompt and self._tokenizer.chat_template:
            columns = self._reader.columns or {}
            prompt, answer = (columns.get(name, name) for name in ("prompt", "completion"))
            raise UserError(
                "has a prompt and a completion, and the model has a chat template: set data.format "
                "to completion to train on the two as they are, or data.columns to "
                f"{{instruction: {prompt}, output: {answer}}} to make a conversation of them"
            )

    def _render_text(self, record: Text) -> Rendered:
        text = record.prompt + record.completion
        begin = 0 if self._reader.loss_on == "everything" else len(record.prompt)
        return Rendered(text, [(begin, len(text))], plain=True)

    def _render_chat(self, chat: Chat) -> list[Rendered]:
        template = self._template(chat.tools)
        pattern, loss_on = template.control_pattern, self._reader.loss_on
        found = control.find(chat.turns, pattern) or control.find(chat.tools, pattern)
        if found is None or self._reader.control_tokens == "keep":
            notes = CONTROL if found else 0
            return [_rendered(part, notes) for part in render_chat(chat, template, loss_on)]
        if self._reader.control_tokens == "refuse":
            raise UserError(
                f"spells the control token {found!r}; correct it, or set data.control_tokens to "
                "text or keep"
            )
        marked = Chat(
            control.mark(chat.turns, pattern), chat.first, control.mark(chat.tools, pattern),
            chat.untrained,
        )  # fmt: skip
        rendered = [_rendered(part, CONTROL) for part in render_chat(marked, template, loss_on)]
        whole = render_chat(chat, template, loss_on)
        if [part.text for part in rendered] != [part.text for part in whole]:
            raise UserError(
                f"spells the control token {found!r}, and the chat template takes the text around "
                "it apart; correct it, or set data.control_tokens to keep"
            )
        return rendered

    def _template(self, tools: Sequence[Fields] | None) -> Template:
        named = self._tokenizer.chat_template
        if not named:
            raise UserError(
                "is a conversation, but the tokenizer has no chat template; "
                "name a file with one in model.chat_template"
            )
        source: str = self._tokenizer.get_chat_template(tools=tools)
        if source not in self._templates:
            name = "the chat template"
            if isinstance(named, Mapping):
                name += next((f" {key!r}" for key in named if named[key] == source), "")
            self._templates[source] = Template(self._tokenizer, source, name, self._now)
        return self._templates[source]


def _rendered(part: RenderedChat, notes: int) -> Rendered:
    spelled: Sequence[Span]
    text, spans, spelled = part.text, part.spans, ()
    if notes & CONTROL:
        text, spans, spelled = control.unmark(text, spans)
    notes |= SPLIT * part.is_split | FORGETS * part.forgets
    return Rendered(text, spans, plain=False, spelled=spelled, notes=notes)


def _prompt(pair: Pair) -> Chat | Text:
    """What all pairs of a prompt have in common; where there is no prompt, the chosen answer."""
    chosen = pair.chosen
    if isinstance(chosen, Text):
        return Text(chosen.prompt, "") if chosen.prompt else chosen
    return Chat(chosen.turns[: chosen.first], 0, chosen.tools) if chosen.first else chosen


def _digest(record: Chat | Text) -> int:
    """A digest of what a record means: records that templates may render alike have the same."""
    if isinstance(record, Text):
        content: Any = (record.prompt + record.completion).strip()
    else:
        turns = [
            {key: item.strip() if isinstance(item, str) else item for key, item in turn.items()}
            for turn in record.turns
        ]
        content = [turns, record.tools]
    text = json.dumps(content, sort_keys=True, default=str).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
