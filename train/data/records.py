"""What a row means: a conversation, a text, or a preference pair; whichever fields it comes in."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.data import FORMATS
from ..errors import UserError

_WANTED = {kind: frozenset(fields) for kind, fields in FORMATS.items()}
ROLES = ("system", "user", "assistant", "tool")
_ROLES = {role: role for role in ROLES} | {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
}

Turns = list[dict[str, Any]]


@dataclass(frozen=True)
class Chat:
    """A conversation for the chat template; what is learned begins at turn number `first`."""

    turns: Turns
    first: int = 0
    tools: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Text:
    """Plain text, of which the completion is learned."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Pair:
    """Two answers to the same prompt."""

    chosen: Chat | Text
    rejected: Chat | Text


Record = Chat | Text | Pair


def read_record(
    row: Mapping[str, Any], format: str | None = None, columns: Mapping[str, str] | None = None
) -> Record:
    """What a row says.

    Args:
      format: one of FORMATS; None tells it by the fields that are there.
      columns: the column that each of FIELDS is taken from; where given, no other is looked at.

    Raises:
      UserError: where a field is missing or of another type; without the row's place.
    """
    if columns:
        row = _renamed(row, columns)
    row = {key: value for key, value in row.items() if value is not None}
    kind = format or _detect(row)
    _needs(row, FORMATS[kind])
    tools = _tools(row.get("tools"))
    match kind:
        case "messages" | "conversations":
            return Chat(_turns(row[kind], kind), 0, tools)
        case "preference":
            return _pair(row.get("prompt"), row["chosen"], row["rejected"], tools)
        case "completion":
            return _continued(row["prompt"], row["completion"], "completion", tools)
        case "alpaca":
            asked = [row["instruction"], row.get("input") or ""]
            _string(asked[0], "instruction"), _string(asked[1], "input")
            question = {"role": "user", "content": "\n\n".join(filter(None, asked))}
            answer = {"role": "assistant", "content": _string(row["output"], "output")}
            return Chat([question, answer], 0, tools)
    return Text("", _string(row["text"], "text"))


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    for field, column in columns.items():
        if column not in row:
            raise UserError(
                f"has no column {column!r}, which data.columns takes {field} from; "
                f"it has {', '.join(map(repr, row)) or 'none'}"
            )
    return {field: row[column] for field, column in columns.items()}


def _detect(row: Mapping[str, Any]) -> str:
    for kind, wanted in _WANTED.items():
        if row.keys() >= wanted:
            return kind
    for kind, fields in FORMATS.items():
        if not row.keys().isdisjoint(fields):
            return kind  # It is told what is missing of it.
    raise UserError(
        "needs messages, prompt and completion, instruction and output, text, or chosen and "
        f"rejected, and has {', '.join(map(repr, sorted(row))) or 'none'}; "
        "map other columns with data.columns"
    )


def _needs(row: Mapping[str, Any], fields: Sequence[str]) -> None:
    for field in fields:
        if field not in row:
            together = f"; {' and '.join(fields)} go together" if len(fields) > 1 else ""
            raise UserError(f"has no {field}, or it is null{together}; add it or take the row out")


def _pair(prompt: Any, chosen: Any, rejected: Any, tools: Any) -> Pair:
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise UserError("chosen and rejected must both be strings or both lists")
    if isinstance(chosen, str) or not isinstance(prompt, str | None):
        if prompt is None:
            raise UserError("has no prompt; chosen and rejected strings need one")
        return Pair(
            _continued(prompt, chosen, "chosen", tools),
            _continued(prompt, rejected, "rejected", tools),
        )
    # Two whole conversations: they part where their turns differ.
    sides = [_turns(chosen, "chosen"), _turns(rejected, "rejected")]
    if prompt is not None and all(turns[0]["role"] == "assistant" for turns in sides):
        sides = [[{"role": "user", "content": prompt}, *turns] for turns in sides]
    shared = 0
    for left, right in zip(*sides, strict=False):
        if left != right:
            break
        shared += 1
    return Pair(*(Chat(turns, shared, tools) for turns in sides))


def _continued(prompt: Any, answer: Any, name: str, tools: Any) -> Chat | Text:
    """A prompt and what follows it, both strings or both lists of turns."""
    if isinstance(prompt, str) != isinstance(answer, str):
        raise UserError(f"prompt and {name} must both be strings or both lists")
    if isinstance(prompt, str):
        return Text(prompt, _string(answer, name))
    before = _turns(prompt, "prompt")
    return Chat(before + _turns(answer, name), len(before), tools)


def _turns(value: Any, field: str) -> Turns:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise UserError(f"{field} must be a list of turns, each with role and content")
    return [_turn(turn, f"{field}, turn {number}") for number, turn in enumerate(value, 1)]


def _turn(turn: Any, place: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise UserError(f"{place} must be an object with role and content")
    # Tables fill up the keys that only some turns have.
    turn = {key: value for key, value in turn.items() if value is not None}
    role = turn.pop("role", None) or turn.pop("from", None)
    if not isinstance(role, str) or role not in _ROLES:
        raise UserError(f"{place} has the role {role!r}; use one of {', '.join(ROLES)}")
    content = turn.pop("content", turn.pop("value", None))
    if content is None and turn.get("tool_calls"):
        content = ""  # A call of a tool says nothing beside it.
    return {"role": _ROLES[role], "content": _string(content, f"{place}: content"), **turn}


def _tools(value: Any) -> Sequence[Mapping[str, Any]] | None:
    """Descriptions of tools, as a list or as the JSON text that tables often hold."""
    if isinstance(value, str):
        try:
            value = json.loads(value or "[]")
        except ValueError:
            raise UserError("tools is a string that is not JSON; write a list of objects") from None
    if not value:
        return None
    if not isinstance(value, Sequence) or not all(isinstance(tool, Mapping) for tool in value):
        raise UserError("tools must be a list of objects, each describing a function")
    return value


def _string(value: Any, field: str) -> str:
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise UserError(f"{field} must be a string, not {kind}")
    return value
