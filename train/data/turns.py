"""The turns of a conversation in one form, whichever of the common forms a record has them in."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import UserError

Turns = list[dict[str, Any]]

ROLES = ("system", "user", "assistant", "tool")
_ROLES = {role: role for role in ROLES} | {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "developer": "system",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
_CALLS = ("function_call", "tool_call")  # Roles of turns whose content is a call.

# Keys of a turn that say whether it is trained on.
FLAGS = ("weight", "train", "loss", "loss_mask", "loss_weight")
# Keys that templates know or that mean nothing to training.
_KNOWN = frozenset(
    ["role", "from", "content", "value", "name", "tool_calls", "tool_call_id", "function_call"]
)
_FLAG_LIKE = re.compile(r"train|loss|mask|weight|learn", re.IGNORECASE)
_TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):")


class Conversation(NamedTuple):
    """Turns, and the numbers of those that the record says not to train on."""

    turns: Turns
    untrained: frozenset[int] = frozenset()


def read_turns(value: Any, field: str, ignore: Sequence[str] = ()) -> Conversation:
    """Reads a list of turns, a single turn, or a transcript of "Human:" and "Assistant:".

    A turn of the result has a role of ROLES; `content`, a string, which only a turn with calls may
    lack; `tool_calls`, each with a `function`; and the turn's other keys, without those that say
    whether it is trained on.

    Raises:
      UserError: if a turn has another form; without the record's position.
    """
    if isinstance(value, Mapping):
        value = [value]
    elif isinstance(value, str) and re.match(r"\s*Human:", value):
        value = _transcript(value)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise UserError(f"{field} must be a list of turns, each with role and content")
    turns: Turns = []
    untrained = set()
    for number, given in enumerate(_in_single_turns(value), 1):
        turn, trained = _turn(given, f"{field}, turn {number}", ignore)
        if not trained:
            untrained.add(len(turns))
        turns.append(turn)
    return Conversation(turns, frozenset(untrained))


def is_transcript(value: Any) -> bool:
    """Whether a value is a dialogue in one string, as in HH-RLHF."""
    return (
        isinstance(value, str) and re.match(r"\s*Human:.*\n\nAssistant:", value, re.S) is not None
    )


def _transcript(text: str) -> list[dict[str, str]]:
    pieces = _TRANSCRIPT.split("\n\n" + text.strip())
    if pieces[0].strip():
        raise UserError("begins before its first 'Human:'; write the conversation as messages")
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(pieces[1::2], pieces[2::2], strict=True)
    return [{"role": roles[who], "content": said.strip()} for who, said in pairs]


def _in_single_turns(value: Sequence[Any]) -> list[Any]:
    """Takes {human, assistant} apart into two turns."""
    turns: list[Any] = []
    for turn in value:
        if isinstance(turn, Mapping) and turn.keys() >= {"human", "assistant"}:
            turns += [{"role": "user", "content": turn["human"]}]
            turns += [{"role": "assistant", "content": turn["assistant"]}]
        else:
            turns.append(turn)
    return turns


def _turn(given: Any, where: str, ignore: Sequence[str]) -> tuple[dict[str, Any], bool]:
    """The turn in the one form, and whether it may be trained on."""
    if not isinstance(given, Mapping):
        raise UserError(f"{where} must be an object with role and content")
    ignore = [*ignore, "function_call"] if "tool_calls" in ignore else ignore
    turn = {key: value for key, value in given.items() if value is not None and key not in ignore}
    named = turn.pop("role", None) or turn.pop("from", None)
    turn.pop("from", None)
    if not isinstance(named, str) or named not in _ROLES:
        raise UserError(f"{where} has the role {named!r}; use one of {', '.join(ROLES)}")
    role = _ROLES[named]
    trained = _read_flags(turn, role, where)
    content = _content(turn.pop("content", turn.pop("value", None)), f"{where}: content")
    turn.pop("value", None)
    calls = _calls(turn, where)
    if named in _CALLS:
        calls, content = _read_call(content, where), None
    if content is None and not calls:
        raise UserError(f"{where}: content must be a string, not null")
    read: dict[str, Any] = {"role": role}
    if content or not calls:  # Templates differ in what they take for no content.
        read["content"] = content
    return read | turn | ({"tool_calls": calls} if calls else {}), trained


def _read_flags(turn: dict[str, Any], role: str, where: str) -> bool:
    """Takes the keys that say whether a turn is trained on out of it, and returns whether it is."""
    trained = True
    for key in FLAGS:
        if key not in turn:
            continue
        value = turn.pop(key)
        if not (isinstance(value, bool | int | float) and value in (0, 1)):
            raise UserError(
                f"{where}: {key} is {_shorten(value)}, and only 0 and 1 are read; correct it, or "
                f"set data.ignore to [{key}]"
            )
        if value and role != "assistant" and key != "weight":
            raise UserError(
                f"{where}: {key} asks to train on a turn of the {role}; only the assistant's are "
                f"trained on: remove it, or set data.ignore to [{key}]"
            )
        trained = trained and bool(value)
    for key, value in turn.items():
        like_a_flag = isinstance(value, bool) or (_FLAG_LIKE.search(key) is not None)
        if key not in _KNOWN and like_a_flag:
            raise UserError(
                f"{where} has the key {key!r} ({_shorten(value)}), which may say whether it is "
                f"trained on: rename it to train, or set data.ignore to [{key}]"
            )
    return trained


def _content(value: Any, field: str) -> str | None:
    """A content, whose parts with text are joined."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, Sequence):
        raise UserError(f"{field} must be a string, not {type(value).__name__}")
    texts = []
    for number, part in enumerate(value, 1):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text", part.get("value")) if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(text, str):
            raise UserError(
                f"{field}, part {number} has the type {kind!r}, and only parts of the type 'text' "
                "are read; remove the record"
            )
        texts.append(text)
    return "".join(texts)


def _calls(turn: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Takes tool_calls, and the older function_call, out of a turn."""
    calls = turn.pop("tool_calls", None) or []
    if isinstance(calls, str):
        calls = _json(calls, f"{where}: tool_calls")
    if not isinstance(calls, Sequence):
        raise UserError(f"{where}: tool_calls must be a list of objects with a function")
    if turn.get("function_call"):
        calls = [*calls, turn["function_call"]]
    turn.pop("function_call", None)
    return [_call(call, where) for call in calls]


def _read_call(content: str | None, where: str) -> list[dict[str, Any]]:
    """The call, or calls, that a turn of the role function_call has as its content."""
    value = _json(content or "", f"{where}: the call")
    return [_call(call, where) for call in (value if isinstance(value, list) else [value])]


def _call(call: Any, where: str) -> dict[str, Any]:
    if isinstance(call, Mapping) and "function" not in call and isinstance(call.get("name"), str):
        call = {"type": "function", "function": dict(call)}
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(f"{where}: a call must have a function with a name")
    return dict(call)


def _json(text: str, field: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise UserError(f"{field} is a string that is not JSON; write it as JSON") from None


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"
