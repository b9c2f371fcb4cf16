"""A conversation as texts of a chat template, with the spans of the turns that are learned."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..errors import UserError
from .coverage import Piece, find_missing, pieces_of
from .records import Chat
from .template import Span, Template, common_prefix
from .turns import Turns


class RenderedChat(NamedTuple):
    """A text of a conversation.

    Attributes:
      is_split: whether the conversation has other texts.
      forgets: whether the template leaves out thoughts of turns that are not learned in this text.
    """

    text: str
    spans: Sequence[Span]
    is_split: bool
    forgets: bool


class _Answer(NamedTuple):
    """The text up to a turn and through it, and the turn's spans in it."""

    text: str
    spans: Sequence[Span]


def render_chat(chat: Chat, template: Template, loss_on: str) -> list[RenderedChat]:
    """Renders a conversation as one text, or as several that together hold each turn to learn.

    A turn is learned in a text that renders it, up to its end, as it is rendered when it is the
    last: as the model will have to write it. From the last turn to the first, as many turns as
    possible share a text.

    Raises:
      UserError: if the template leaves out something, or hides which characters are a turn's.
    """
    turns = template.formed(chat.turns, chat.tools)
    chat = Chat(turns, chat.first, chat.tools, chat.untrained)
    if chat.tools and not template.renders_tools:
        raise UserError(_describe(None, Piece("tools", "", "tools"), template.name))
    renderer = _ChatRenderer(chat, template)
    answers = answers_of(turns)
    wanted = [n for n in answers if n >= chat.first and n not in chat.untrained]
    if loss_on == "everything":
        return [renderer.everything()]
    if loss_on == "last":
        wanted = [n for n in wanted if n == answers[-1]]
    parts = [(len(turns), renderer.learned(renderer.whole, wanted))]
    while left := [n for n in wanted if not any(n in part for _, part in parts)]:
        shorter = left[-1] + 1
        parts.append((shorter, renderer.learned(renderer.answer(left[-1]).text, left)))
    if len(parts) > 1 and not parts[0][1]:
        del parts[0]  # No turn is learned in the whole conversation.
    return [renderer.part(length, spans, len(parts) > 1) for length, spans in reversed(parts)]


def answers_of(turns: Turns) -> list[int]:
    """The numbers of the assistant's turns."""
    return [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]


class _ChatRenderer:
    """Renders one conversation and parts of it."""

    def __init__(self, chat: Chat, template: Template) -> None:
        self._chat, self._template = chat, template
        self._answers = answers_of(chat.turns)
        self._alone: dict[int, _Answer] = {}
        self._prefixes: dict[int, tuple[str, list[Span]]] = {}
        self.whole = self._prefix(len(chat.turns))[0]

    def _prefix(self, length: int) -> tuple[str, list[Span]]:
        """The text of the first turns, and what the template marks in it."""
        if length not in self._prefixes:
            turns, tools = self._chat.turns[:length], self._chat.tools
            self._prefixes[length] = (
                self._template.text_and_marked(turns, tools)
                if self._template.has_markers
                else (self._template.text(turns, tools), [])
            )
        return self._prefixes[length]

    def answer(self, number: int) -> _Answer:
        """A turn as it is rendered when it is the last."""
        if number not in self._alone:
            find = self._marked if self._template.has_markers else self._between
            self._alone[number] = find(number)
        return self._alone[number]

    def learned(self, text: str, numbers: Sequence[int]) -> dict[int, Sequence[Span]]:
        """Those of some turns that a text renders as if each were the last, with their spans."""
        found = {}
        for number in numbers:
            spans = self._marked_in_whole(number) if text is self.whole else ()
            if not spans:
                own = self.answer(number)
                spans = own.spans if text.startswith(own.text[: own.spans[-1][1]]) else ()
            if spans:
                found[number] = spans
        return found

    def _marked_in_whole(self, number: int) -> Sequence[Span]:
        """What the template marks of a turn in the whole conversation, if the turn is whole."""
        spans = self._prefix(len(self._chat.turns))[1]
        if len(spans) != len(self._answers):
            return ()
        own = self._through_end([spans[self._answers.index(number)]], self.whole)
        text = self.whole[own[0][0] : own[0][1]]
        pieces = pieces_of(self._chat.turns[number])
        return own if all(piece.is_in(text) for piece in pieces) else ()

    def part(self, length: int, learned: Mapping[int, Sequence[Span]], split: bool) -> RenderedChat:
        """The text of the first turns, in which some turns are learned."""
        turns = self._chat.turns[:length]
        text = self._prefix(length)[0]
        missing = find_missing(text, turns, self._chat.tools, learned)
        if missing.lost:
            raise UserError(_describe(*missing.lost, self._template.name))
        spans = [span for own in learned.values() for span in own]
        return RenderedChat(text, spans, split, missing.forgets)

    def everything(self) -> RenderedChat:
        """The whole text, in which all is learned but the turns that the record takes out."""
        numbers = sorted(self._chat.untrained)
        learned = self.learned(self.whole, numbers)
        if len(learned) < len(numbers):
            raise UserError(
                f"says not to train on turn {numbers[0] + 1}, whose tokens cannot be told apart; "
                "set data.loss_on to assistant"
            )
        part = self.part(len(self._chat.turns), {}, split=False)
        edges = [0, *(edge for own in learned.values() for span in own for edge in span)]
        pairs = zip(edges[::2], [*edges[1::2], len(self.whole)], strict=True)
        return part._replace(spans=[(begin, end) for begin, end in pairs if begin < end])

    def _between(self, number: int) -> _Answer:
        """The span between two texts: of the turns before, with the header of an answer, and of
        the turns through this one."""
        turns, tools, template = self._chat.turns, self._chat.tools, self._template
        text = self._prefix(number + 1)[0]
        if number:
            before = template.text(turns[:number], tools, prompt=True)
        else:  # An empty conversation cannot be rendered: find the header after a default system.
            question: Turns = [{"role": "user", "content": "?"}]
            header = template.text(question, None, prompt=True)
            header = header.removeprefix(template.text(question, None))
            before = text[: text.find(header)] + header
        begin = len(before)
        if not text.startswith(before):
            begin = self._header(common_prefix(before, text), number)
        return _Answer(text, [(begin, begin + self._end(text[begin:]))])

    def _header(self, shared: str, number: int) -> int:
        """Where an answer begins that does not begin as it is to be generated, but with the same
        header: some generation prompts open a thought that the answer does not have."""
        tokens = self._template.control_pattern
        edges = [found.end() for found in tokens.finditer(shared)]
        edge = max([0, shared.rfind("\n") + 1, *edges])
        if number and edge <= len(common_prefix(self._prefix(number)[0], shared)):
            raise UserError(
                f"{self._template.name} begins turn {number + 1} differently where it is to be "
                "generated, so its tokens cannot be told apart; name a template with "
                "{% generation %} markers in model.chat_template"
            )
        return edge

    def _end(self, answer: str) -> int:
        """Where an answer ends, in the text from its begin on: after its end token, if it has one.

        White space after the token is not the answer's, nor is a token that only ends the text.
        """
        token = self._template.end_of_turn
        if token is not None and token in answer:
            return answer.rindex(token) + len(token)
        stripped = answer.rstrip()
        return len(stripped if stripped.endswith(self._template.ends) else answer)

    def _marked(self, number: int) -> _Answer:
        """The spans that the template marks in a turn."""
        text, spans = self._prefix(number + 1)
        own = spans[len(self._prefix(number)[1]) if number else 0 :]
        if not own:
            raise UserError(
                f"{self._template.name} marks no part of turn {number + 1} with "
                "{% generation %}; name another template in model.chat_template"
            )
        return _Answer(text, self._through_end(own, text))

    def _through_end(self, own: Sequence[Span], text: str) -> list[Span]:
        """Marked spans up to the end of turn: what is marked after it is not the turn's, and it is
        learned where it follows them."""
        token = self._template.end_of_turn
        for number in range(len(own) - 1, -1, -1):
            begin, end = own[number]
            if token is not None and token in text[begin:end]:
                return [*own[:number], (begin, text.rindex(token, begin, end) + len(token))]
        begin, end = own[-1]
        marked, following = text[begin:end].rstrip(), text[end:]
        if marked.endswith(self._template.ends):
            end = begin + len(marked)
        elif token is not None and following.lstrip().startswith(token):
            end += following.index(token) + len(token)
        return [*own[:-1], (begin, end)]


def _describe(number: int | None, piece: Piece, template: str) -> str:
    """What a template left out, and what can be done."""
    where = "" if number is None else f"turn {number + 1}, "
    ignore = "" if piece.key == "content" else f" set data.ignore to [{piece.key}],"
    return (
        f"{template} leaves out {where}{piece.field}: name a template that renders it in "
        f"model.chat_template,{ignore} or remove the record"
    )
