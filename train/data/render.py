"""From a record to tokens, and which of them are learned."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from train.errors import UserError
from train.tokenizer import text_ids

ROLES = ("system", "user", "assistant", "tool")
Span = tuple[int, int]  # characters of a text, from and up to


class Example(NamedTuple):
    """A rendered record."""

    tokens: np.ndarray  # int32 [n]
    learned: np.ndarray  # bool [n], True where the token is a target
    where: str


def render(fields: Mapping[str, Any], where: str, tokenizer: Any) -> Example:
    """Tokens of a record with `messages`, `prompt` and `completion`, or `text`.

    Learned are the assistant's turns with their end-of-turn token, the completion with the
    end-of-text token, or the whole text with it.

    Raises:
      UserError: with the record's place, where it cannot be rendered or has nothing to learn.
    """
    if "messages" in fields:
        text, spans = _chat(_messages(fields["messages"], where), where, tokenizer)
    elif "prompt" in fields and "completion" in fields:
        text, spans = _completion(fields["prompt"], fields["completion"], where, tokenizer)
    elif "text" in fields:
        text = _string(fields["text"], "text", where)
        spans = [(0, len(text))]
        text, spans = _close(text, spans, tokenizer)
    else:
        raise UserError(
            f"{where}: needs messages, prompt and completion, or text, but has "
            f"{', '.join(set(fields) - {'where'}) or 'nothing'}; map other names with data.columns"
        )
    example = _tokenize(text, spans, where, tokenizer, chat="messages" in fields)
    if not example.learned.any():
        raise UserError(
            f"{where}: has no token to learn; add an assistant turn or a completion that is not "
            "empty, or take the record out"
        )
    return example


def _string(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {field} must be a string, got {type(value).__name__}")
    return value


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise UserError(f"{where}: messages must be a list of turns with role and content")
    turns = []
    for number, turn in enumerate(value):
        if not isinstance(turn, Mapping) or "role" not in turn or "content" not in turn:
            raise UserError(f"{where}: messages[{number}] must have role and content")
        if turn["role"] not in ROLES:
            raise UserError(
                f"{where}: messages[{number}] has the unknown role {turn['role']!r}; "
                f"known are {', '.join(ROLES)}"
            )
        _string(turn["content"], f"messages[{number}].content", where)
        turns.append(dict(turn))
    return turns


def _chat(turns: list[dict[str, str]], where: str, tokenizer: Any) -> tuple[str, list[Span]]:
    """The conversation as text, and the spans that the assistant wrote.

    A turn's span is found by rendering the conversation up to it and through it: a template that
    renders a beginning of the conversation to a beginning of the text shows exactly what it adds.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"{where}: has messages, but the tokenizer has no chat template; "
            "name a Jinja file in model.chat_template"
        )

    def rendered(number: int, prompt: bool) -> str:
        text: str = tokenizer.apply_chat_template(
            turns[:number], tokenize=False, add_generation_prompt=prompt
        )
        return text

    try:
        whole = rendered(len(turns), False)
        spans = []
        for number, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            before = rendered(number, True) if number else ""
            through = rendered(number + 1, False)
            if not (whole.startswith(through) and through.startswith(before)):
                raise UserError(
                    f"{where}: the chat template renders messages[{number}] differently when "
                    "more turns follow, so what the assistant wrote cannot be told; use another "
                    "template with model.chat_template"
                )
            spans.append((len(before), len(before) + len(through[len(before) :].rstrip("\n"))))
    except UserError:
        raise
    except Exception as error:  # whatever a template raises, jinja2's own errors among it
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{where}: the chat template refuses it ({reason})") from None
    return whole, spans


def _completion(prompt: Any, completion: Any, where: str, tokenizer: Any) -> tuple[str, list[Span]]:
    first, second = _string(prompt, "prompt", where), _string(completion, "completion", where)
    spans = [(len(first), len(first) + len(second))] if second else []
    return _close(first + second, spans, tokenizer)


def _close(text: str, spans: list[Span], tokenizer: Any) -> tuple[str, list[Span]]:
    """Adds the end-of-text token, which is learned with what it ends."""
    end = tokenizer.eos_token
    if not spans or not end:
        return text, spans
    if text.endswith(end):
        return text, spans
    start, _ = spans[-1]
    return text + end, [*spans[:-1], (start, len(text) + len(end))]


def _tokenize(text: str, spans: list[Span], where: str, tokenizer: Any, *, chat: bool) -> Example:
    """Tokenises once, as a whole; a token is learned if its first character lies in a span."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = np.asarray(encoded["input_ids"], np.int32)
    starts = np.asarray([start for start, _ in encoded["offset_mapping"]], np.int64)
    learned = np.zeros(len(tokens), bool)
    for start, end in spans:
        learned |= (starts >= start) & (starts < end)
    added = 0 if chat else len(text_ids(tokenizer, text)) - len(tokens)
    if added:
        tokens = np.concatenate([[tokenizer.bos_token_id], tokens]).astype(np.int32)
        learned = np.concatenate([[False], learned])
    return Example(tokens, learned, where)
