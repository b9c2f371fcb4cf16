"""From a record to tokens, and which of them are training targets."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.data.sources import FIELDS
from train.errors import UserError

ROLES = ("system", "user", "assistant", "tool")

Turns = list[dict[str, Any]]
Span = tuple[int, int]  # Characters of a text: from, and up to but not including.


@dataclass(frozen=True)
class Example:
    """A rendered record."""

    tokens: np.ndarray  # int32 [n]
    target: np.ndarray  # bool [n]: True where the token is learned
    where: str


def render(record: Mapping[str, Any], tokenizer: Any) -> Example:
    """A record's tokens and targets.

    - `messages`: the tokenizer's chat template; targets are the assistant's turns with the
      end-of-turn token, without the line break that templates put after it.
    - `prompt` and `completion`: strings, one after the other; targets are the completion and the
      end-of-text token. Or lists of messages; targets are the assistant's turns of the completion.
    - `text`: every token, and the end-of-text token.

    The first of these that a record has counts. A template writes its own beginning token; other
    text gets the one that the tokenizer itself begins with.

    Raises:
      UserError: with the record's place, where it has none of these, has them in another form, or
        has no target.
    """
    where = record["where"]
    if not tokenizer.is_fast:
        raise UserError(
            "the tokenizer does not say which characters a token is from; "
            "the model's folder needs a tokenizer.json"
        )
    has = [field for field in FIELDS if record.get(field) is not None]
    if "messages" in has:
        tokens, target = _chat(_turns(record["messages"], "messages", where), 0, where, tokenizer)
    elif "prompt" in has or "completion" in has:
        tokens, target = _completion(record, where, tokenizer)
    elif "text" in has:
        tokens, target = _plain("", _string(record["text"], "text", where), where, tokenizer)
    else:
        names = ", ".join(repr(name) for name in record if name != "where")
        raise UserError(
            f"{where}: needs messages, prompt and completion, or text, and has {names or 'none'}; "
            "map other columns with data.columns"
        )
    if not target[1:].any():  # The first token follows nothing: it cannot be learned.
        raise UserError(
            f"{where}: has no token to learn; add an assistant turn or text, or take it out"
        )
    return Example(tokens, target, where)


def _completion(
    record: Mapping[str, Any], where: str, tokenizer: Any
) -> tuple[np.ndarray, np.ndarray]:
    prompt, completion = record.get("prompt"), record.get("completion")
    if prompt is None or completion is None:
        missing = "prompt" if prompt is None else "completion"
        raise UserError(f"{where}: has no {missing}; prompt and completion go together")
    if isinstance(prompt, str) != isinstance(completion, str):
        raise UserError(f"{where}: prompt and completion must both be strings or both lists")
    if isinstance(prompt, str):
        texts = _string(prompt, "prompt", where), _string(completion, "completion", where)
        return _plain(*texts, where, tokenizer)
    before = _turns(prompt, "prompt", where)
    turns = before + _turns(completion, "completion", where)
    return _chat(turns, len(before), where, tokenizer)


def _plain(
    prompt: str, completion: str, where: str, tokenizer: Any
) -> tuple[np.ndarray, np.ndarray]:
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError(
            f"{where}: the tokenizer has no end-of-text token to end the text with; "
            "set eos_token in its tokenizer_config.json"
        )
    text = prompt + completion
    tokens, starts = _tokenize(text, tokenizer)
    target = _inside(starts, [(len(prompt), len(text))])
    begin = tokenizer.encode("")[:1]
    if begin == [tokenizer.bos_token_id] and tokens[:1].tolist() != begin:
        tokens, target = np.append(begin, tokens), np.append([False], target)
    # A record may bring its own end. Ending an empty completion is learned too.
    if not (completion and tokens[-1:].tolist() == [end]):
        tokens, target = np.append(tokens, end), np.append(target, True)
    return tokens.astype(np.int32), target.astype(bool)


def _chat(turns: Turns, first: int, where: str, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of a conversation; targets are the assistant's turns, from number `first` on."""
    if not tokenizer.chat_template:
        raise UserError(
            f"{where}: has messages, but the tokenizer has no chat template; "
            "name a file with one in model.chat_template"
        )
    if first == 0 and re.search(r"\{%-?\s*generation\s*-?%\}", tokenizer.get_chat_template()):
        encoded = _template(
            turns, where, tokenizer, return_dict=True, return_assistant_tokens_mask=True
        )
        tokens = np.asarray(encoded["input_ids"], np.int32)
        target = np.asarray(encoded["assistant_masks"], bool)
        # Some templates end their markers before the end-of-turn token.
        ends = (tokens[1:] == tokenizer.eos_token_id) & target[:-1]
        target[1:] |= ends
        return tokens, target
    text = _text(turns, where, tokenizer)
    spans = [
        _span(turns, number, text, where, tokenizer)
        for number in range(first, len(turns))
        if turns[number]["role"] == "assistant"
    ]
    tokens, starts = _tokenize(text, tokenizer)
    return tokens, _inside(starts, spans)


def _span(turns: Turns, number: int, text: str, where: str, tokenizer: Any) -> Span:
    """Which characters of the whole conversation's text are an assistant's turn.

    What the template adds by that turn shows by rendering the conversation up to it, ready for
    an answer, and through it.
    """
    if number:
        before = _text(turns[:number], where, tokenizer, prompt=True)
    else:  # Nothing cannot be rendered: the header is looked for, past a system turn by default.
        before = _header(where, tokenizer)
        before = text[: text.find(before)] + before
    through = _text(turns[: number + 1], where, tokenizer)
    if not (text.startswith(through) and through.startswith(before)):
        raise UserError(
            f"{where}: the chat template renders turn {number + 1} differently once others follow "
            "or it is to be generated, so its tokens cannot be told apart; name a template with "
            "{% generation %} markers in model.chat_template"
        )
    return len(before), len(_without_break(through, tokenizer))


def _header(where: str, tokenizer: Any) -> str:
    """What the template writes before an answer."""
    question: Turns = [{"role": "user", "content": "?"}]
    asked = _text(question, where, tokenizer)
    return _text(question, where, tokenizer, prompt=True).removeprefix(asked)


def _without_break(text: str, tokenizer: Any) -> str:
    """Leaves out white space after an end-of-turn token; elsewhere, it is the end of the turn."""
    bare = text.rstrip()
    ends = tuple(str(token) for token in tokenizer.added_tokens_decoder.values())
    return bare if bare.endswith(ends) else text


def _text(turns: Turns, where: str, tokenizer: Any, *, prompt: bool = False) -> str:
    text: str = _template(turns, where, tokenizer, tokenize=False, add_generation_prompt=prompt)
    return text


def _template(turns: Turns, where: str, tokenizer: Any, **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(turns, **options)
    except Exception as error:  # A template raises what it likes.
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{where}: the chat template refuses the conversation ({reason}); "
            "correct it, or name another template in model.chat_template"
        ) from None


def _tokenize(text: str, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and the character that each begins with; none are added at either end."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    tokens = np.asarray(encoded["input_ids"], np.int32)
    offsets = np.asarray(encoded["offset_mapping"], np.int64).reshape(-1, 2)
    # Some tokenizers trim white space off a token's characters, all of it off one that has
    # nothing else: it stands before the place where it is said to be.
    return tokens, offsets[:, 0] - (offsets[:, 0] == offsets[:, 1])


def _inside(starts: np.ndarray, spans: list[Span]) -> np.ndarray:
    """Whether a token begins in one of the spans."""
    inside = np.zeros(len(starts), bool)
    for begin, end in spans:
        inside |= (starts >= begin) & (starts < end)
    return inside


def _turns(value: Any, field: str, where: str) -> Turns:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise UserError(f"{where}: {field} must be a list of turns, each with role and content")
    turns = []
    for number, turn in enumerate(value, 1):
        place = f"{field}, turn {number}"
        if not isinstance(turn, Mapping):
            raise UserError(f"{where}: {place} must be an object with role and content")
        if turn.get("role") not in ROLES:
            raise UserError(
                f"{where}: {place} has the role {turn.get('role')!r}; use one of {', '.join(ROLES)}"
            )
        _string(turn.get("content"), f"{place}: content", where)
        turns.append(dict(turn))
    return turns


def _string(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {field} must be a string, not {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: {field} has half of a surrogate pair (\\ud800 to \\udfff); correct it"
        ) from None
    return value
