"""A record's meaning: a conversation, a text or a preference pair, whatever its format."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..config.data import FIELDS, FORMATS
from ..errors import UserError
from .questions import choose_format, refuse_labels, suggest_columns
from .turns import Conversation, Turns, is_transcript, read_turns

_REQUIRED = {kind: frozenset(fields) for kind, fields in FORMATS.items()}

# Names that some data sets have for a field.
_OTHER_NAMES = {"conversations": "conversation", "tools": "functions"}

Fields = Mapping[str, Any]  # A record as its source holds it.


@dataclass(frozen=True)
class Chat:
    """A conversation for the chat template.

    Attributes:
      first: the number of the first turn that is not the prompt.
      untrained: the turns that the record says not to train on.
    """

    turns: Turns
    first: int = 0
    tools: Sequence[Fields] | None = None
    untrained: frozenset[int] = frozenset()


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


def is_empty(answer: Chat | Text) -> bool:
    """Whether nothing follows the prompt."""
    if isinstance(answer, Text):
        return not answer.completion.strip()
    turns = [turn for turn in answer.turns[answer.first :] if turn["role"] == "assistant"]
    return not any(str(t.get("content") or "").strip() or t.get("tool_calls") for t in turns)


class Reading(NamedTuple):
    """How a record was understood.

    Attributes:
      format: one of FORMATS.
      used: the columns that were read, in the order of FIELDS.
      unused: the columns that were not.
    """

    format: str
    used: tuple[str, ...]
    unused: tuple[str, ...]


def read_record(
    fields: Fields,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
) -> Record:
    """Reads a record's fields; see `understand_record`."""
    return understand_record(fields, format, columns, ignore)[0]


def understand_record(
    fields: Fields,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
) -> tuple[Record, Reading]:
    """Reads a record's fields, and reports how.

    Args:
      fields: the record as its source holds it.
      format: one of FORMATS; None: the one whose fields the record has.
      columns: the column that each of FIELDS is taken from; where given, other columns are ignored.
      ignore: columns, and keys of turns, that are not looked at.

    Raises:
      UserError: if a field is missing or of another type, or the record can be meant in two ways;
        without the record's position.
    """
    columns = columns or {}
    if columns:
        named = _renamed(fields, columns)
    else:
        columns = {
            field: other
            for field, other in _OTHER_NAMES.items()
            if fields.get(other) is not None and fields.get(field) is None
        }
        aliases = {column: field for field, column in columns.items()}
        named = {
            aliases.get(name, name): value for name, value in fields.items() if value is not None
        }
    present = {
        field: value
        for field, value in named.items()
        if value is not None and columns.get(field, field) not in ignore
    }
    kind = format or _detect(present)
    _require(present, kind)
    names = _names_read(kind, present)
    used = tuple(columns.get(name, name) for name in names)
    unused = {
        name: fields[name] for name in fields if name not in used and fields[name] is not None
    }
    if set(columns.values()) <= set(_OTHER_NAMES.values()):
        refuse_labels({name: unused[name] for name in unused if name not in ignore})
    record = _read(kind, {name: present[name] for name in names}, ignore)
    return record, Reading(kind, used, tuple(sorted(unused)))


def _names_read(kind: str, present: Fields) -> list[str]:
    """The fields of a record that a format reads."""
    wanted = {*FORMATS[kind], "tools"} - ({"tools"} if kind == "text" else set())
    if kind in ("messages", "conversations", "alpaca"):
        wanted.add("system")
    if kind == "alpaca":
        wanted |= {"input", "history"}
    if kind == "preference":
        wanted.add("prompt")
        if "prompt" not in present:
            wanted.add("conversations")
    return [name for name in FIELDS if name in wanted and name in present]


def _read(kind: str, fields: Fields, ignore: Sequence[str]) -> Record:
    tools = _tools(fields.get("tools"))
    match kind:
        case "messages" | "conversations":
            talk = _with_system(read_turns(fields[kind], kind, ignore), fields.get("system"))
            return Chat(talk.turns, 0, tools, talk.untrained)
        case "preference":
            prompt = fields.get("prompt", fields.get("conversations"))
            return _pair(prompt, fields["chosen"], fields["rejected"], tools, ignore)
        case "completion":
            prompt, answer = fields["prompt"], fields["completion"]
            return _continued(prompt, answer, "completion", tools, ignore)
        case "alpaca":
            talk = _with_system(_alpaca(fields), fields.get("system"))
            return Chat(talk.turns, 0, tools)
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
    fitting = [kind for kind, required in _REQUIRED.items() if fields.keys() >= required]
    if fitting:
        return choose_format(fields, fitting)
    for kind, names in FORMATS.items():
        if not fields.keys().isdisjoint(names):
            return kind  # The error then names the fields of this format that are missing.
    raise UserError(
        "needs messages, prompt and completion, instruction and output, text, or chosen and "
        f"rejected, and has {', '.join(map(repr, sorted(fields))) or 'none'}; "
        f"map other columns with data.columns{suggest_columns(fields)}"
    )


def _require(fields: Fields, kind: str) -> None:
    names = FORMATS[kind]
    for name in names:
        if name not in fields:
            together = f"; {' and '.join(names)} go together" if len(names) > 1 else ""
            raise UserError(
                f"has no {name}, or it is null{together}; add it, map another column with "
                f"data.columns{suggest_columns(fields)}, or remove the record"
            )


def _alpaca(fields: Fields) -> Conversation:
    instruction = _string(fields["instruction"], "instruction")
    given = _string(fields.get("input", ""), "input")
    turns: Turns = []
    for number, pair in enumerate(fields.get("history") or [], 1):
        if not (isinstance(pair, Sequence) and len(pair) == 2):
            raise UserError(f"history, item {number} must be a list of a question and its answer")
        for role, said in zip(("user", "assistant"), pair, strict=True):
            turns.append({"role": role, "content": _string(said, f"history, item {number}")})
    question = "\n\n".join(filter(None, [instruction, given]))
    turns.append({"role": "user", "content": question})
    turns.append({"role": "assistant", "content": _string(fields["output"], "output")})
    return Conversation(turns)


def _with_system(talk: Conversation, system: Any) -> Conversation:
    """The conversation after the system turn that a column holds, if it does."""
    if system in (None, ""):
        return talk
    if talk.turns[0]["role"] == "system":
        raise UserError(
            "has a system turn and a column 'system'; remove one of them, or set data.ignore to "
            "[system]"
        )
    turn = {"role": "system", "content": _string(system, "system")}
    return Conversation([turn, *talk.turns], frozenset(n + 1 for n in talk.untrained))


def _pair(prompt: Any, chosen: Any, rejected: Any, tools: Any, ignore: Sequence[str]) -> Pair:
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise UserError("chosen and rejected must both be strings or both lists")
    whole = prompt is None and is_transcript(chosen) and is_transcript(rejected)
    if not whole and (isinstance(chosen, str) or not isinstance(prompt, str | None)):
        if prompt is None:
            raise UserError("has no prompt; chosen and rejected strings need one")
        if isinstance(chosen, str) and not isinstance(prompt, str):
            raise UserError("prompt must be a string, as chosen and rejected are")
        return Pair(
            _continued(prompt, chosen, "chosen", tools, ignore),
            _continued(prompt, rejected, "rejected", tools, ignore),
        )
    # Two whole conversations: the answers begin where their turns differ.
    answers = [read_turns(chosen, "chosen", ignore), read_turns(rejected, "rejected", ignore)]
    if prompt is not None and all(talk.turns[0]["role"] == "assistant" for talk in answers):
        asked = {"role": "user", "content": prompt}
        answers = [
            Conversation([asked, *talk.turns], frozenset(n + 1 for n in talk.untrained))
            for talk in answers
        ]
    num_shared = 0
    for left, right in zip(*(talk.turns for talk in answers), strict=False):
        if left != right:
            break
        num_shared += 1
    return Pair(*(Chat(talk.turns, num_shared, tools, talk.untrained) for talk in answers))


def _continued(
    prompt: Any, answer: Any, name: str, tools: Any, ignore: Sequence[str]
) -> Chat | Text:
    """A prompt and its continuation, both strings or both turns."""
    if isinstance(prompt, str) != isinstance(answer, str):
        raise UserError(f"prompt and {name} must both be strings or both lists")
    if isinstance(prompt, str):
        return Text(prompt, _string(answer, name))
    before, after = read_turns(prompt, "prompt", ignore), read_turns(answer, name, ignore)
    count = len(before.turns)
    untrained = before.untrained | {count + number for number in after.untrained}
    return Chat(before.turns + after.turns, count, tools, untrained)


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
    return [
        {"type": "function", "function": tool}
        if "name" in tool and "function" not in tool
        else tool
        for tool in value
    ]


def _string(value: Any, field: str) -> str:
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise UserError(f"{field} must be a string, not {kind}")
    return value
