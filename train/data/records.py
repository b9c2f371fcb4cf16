"""A record's meaning: a conversation, a text or a preference pair, whatever its format."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.data import FORMATS
from ..errors import UserError

_REQUIRED = {kind: frozenset(fields) for kind, fields in FORMATS.items()}
ROLES = ("system", "user", "assistant", "tool")
_ROLES = {role: role for role in ROLES} | {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
}

Fields = Mapping[str, Any]  # A record as its source holds it.
Turns = list[dict[str, Any]]


@dataclass(frozen=True)
class Chat:
    """A conversation for the chat template; turns before number `first` are the prompt."""

    turns: Turns
    first: int = 0
    tools: Sequence[Fields] | None = None


@dataclass(frozen=True)
class Text:
    """Plain text: a prompt, which may be empty, and its completion."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Pair:
    """A preferred and a rejected answer to the same prompt."""

    chosen: Chat | Text
    rejected: Chat | Text


Record = Chat | Text | Pair


def read_record(
    fields: Fields, format: str | None = None, columns: Mapping[str, str] | None = None
) -> Record:
    """Reads a record's fields.

    Args:
      fields: the record as its source holds it.
      format: one of FORMATS; None: the first of them whose fields the record has.
      columns: the column that each of FIELDS is taken from; where given, other columns are ignored.

    Raises:
      UserError: if a field is missing or of another type; without the record's position.
    """
    if columns:
        fields = _renamed(fields, columns)
    fields = {key: value for key, value in fields.items() if value is not None}
    kind = format or _detect(fields)
    _require(fields, FORMATS[kind])
    tools = _tools(fields.get("tools"))
    match kind:
        case "messages" | "conversations":
            return Chat(_turns(fields[kind], kind), 0, tools)
        case "preference":
            return _pair(fields.get("prompt"), fields["chosen"], fields["rejected"], tools)
        case "completion":
            return _continued(fields["prompt"], fields["completion"], "completion", tools)
        case "alpaca":
            instruction = _string(fields["instruction"], "instruction")
            given = _string(fields.get("input") or "", "input")
            question = {"role": "user", "content": "\n\n".join(filter(None, [instruction, given]))}
            answer = {"role": "assistant", "content": _string(fields["output"], "output")}
            return Chat([question, answer], 0, tools)
    return Text("", _string(fields["text"], "text"))


def _renamed(fields: Fields, columns: Mapping[str, str]) -> dict[str, Any]:
    for field, column in columns.items():
        if column not in fields:
            raise UserError(
                f"has no column {column!r}, which data.columns takes {field} from; "
                f"it has {', '.join(map(repr, fields)) or 'none'}"
            )
    return {field: fields[column] for field, column in columns.items()}


def _detect(fields: Fields) -> str:
    for kind, required in _REQUIRED.items():
        if fields.keys() >= required:
            return kind
    for kind, names in FORMATS.items():
        if not fields.keys().isdisjoint(names):
            return kind  # The error then names the fields of this format that are missing.
    raise UserError(
        "needs messages, prompt and completion, instruction and output, text, or chosen and "
        f"rejected, and has {', '.join(map(repr, sorted(fields))) or 'none'}; "
        "map other columns with data.columns"
    )


def _require(fields: Fields, names: Sequence[str]) -> None:
    for name in names:
        if name not in fields:
            together = f"; {' and '.join(names)} go together" if len(names) > 1 else ""
            raise UserError(f"has no {name}, or it is null{together}; add it or remove the record")


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
    # Two whole conversations: the answers begin where their turns differ.
    answers = [_turns(chosen, "chosen"), _turns(rejected, "rejected")]
    if prompt is not None and all(turns[0]["role"] == "assistant" for turns in answers):
        answers = [[{"role": "user", "content": prompt}, *turns] for turns in answers]
    num_shared = 0
    for left, right in zip(*answers, strict=False):
        if left != right:
            break
        num_shared += 1
    return Pair(*(Chat(turns, num_shared, tools) for turns in answers))


def _continued(prompt: Any, answer: Any, name: str, tools: Any) -> Chat | Text:
    """A prompt and its continuation, both strings or both lists of turns."""
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


def _turn(turn: Any, where: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise UserError(f"{where} must be an object with role and content")
    # Tables fill up the keys that only some turns have with nulls.
    turn = {key: value for key, value in turn.items() if value is not None}
    role = turn.pop("role", None) or turn.pop("from", None)
    if not isinstance(role, str) or role not in _ROLES:
        raise UserError(f"{where} has the role {role!r}; use one of {', '.join(ROLES)}")
    content = turn.pop("content", turn.pop("value", None))
    if content is None and turn.get("tool_calls"):
        content = ""  # A tool call needs no content.
    return {"role": _ROLES[role], "content": _string(content, f"{where}: content"), **turn}


def _tools(value: Any) -> Sequence[Fields] | None:
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
