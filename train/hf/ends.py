"""The tokens that end a completion, of the chat template, the tokenizer and the config files."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .bounds import rendering
from .time_limit import SECONDS

GENERATION_CONFIG = "generation_config.json"

_QUESTION = {"role": "user", "content": "question"}
_ANSWER = {"role": "assistant", "content": "reply"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {}},
    },
}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {}}}],
}


@dataclass(frozen=True)
class Ends:
    """The tokens at which a model stops, by who names them; each list is of token ids.

    Attributes:
      template: what the chat template writes after a turn of the assistant, which is learned.
      tokenizer: its eos_token.
      files: what generation_config.json names, or config.json where that names none.
      conflict: one line, if they do not agree; otherwise None.
    """

    template: tuple[int, ...]
    tokenizer: tuple[int, ...]
    files: tuple[int, ...]
    conflict: str | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """All of them, once each; the first is the one that the template ends a turn with."""
        return tuple(dict.fromkeys([*self.template, *self.tokenizer, *self.files]))


def find_ends(folder: Path, tokenizer: Any) -> Ends:
    """The ends of a model's folder, with its tokenizer as from `load_tokenizer`.

    Raises:
      UserError: if generation_config.json or config.json is not a JSON object, or the chat
        template does not end.
    """
    template = template_ends(tokenizer)
    eos = tokenizer.eos_token_id
    own = () if eos is None else (int(eos),)
    source, files = _configured(folder)
    # A model agrees with itself if its files name all of its ends, and it learned to write the
    # tokenizer's.
    unnamed = {*template, *own} - set(files)
    if not ((unnamed and files) or (template and own and own[0] not in template)):
        return Ends(template, own, files)

    def names(ids: tuple[int, ...]) -> str:
        known = [tokenizer.convert_ids_to_tokens(id) or str(id) for id in ids]
        return " and ".join(known) or "none"

    sides = [f"the chat template ends a turn with {names(template)}"] if template else []
    sides += [f"the tokenizer's eos_token is {names(own)}", f"{source} names {names(files)}"]
    conflict = (
        f"{folder}: ends differ: {', '.join(sides)}; generation stops at each of them, and an "
        "export names them all"
    )
    return Ends(template, own, files, conflict)


def template_ends(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that the chat template writes after a turn of the assistant.

    They are read off conversations that it renders: an answer, one that others follow, and a call
    of a tool. What a template refuses tells nothing.
    """
    if not tokenizer.chat_template:
        return ()
    added = {str(token): id for id, token in tokenizer.added_tokens_decoder.items()}
    if not added:
        return ()
    token = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))
    found: list[str] = []
    for tools in (None, [_TOOL]):
        text = _render(tokenizer, [_QUESTION, _ANSWER], tools)
        following = text.rpartition("reply")[2]
        if run := re.match(rf"(?:\s*(?:{token}))+", following):
            found += re.findall(token, run.group())
    found += _inner_end(tokenizer, token)
    call = _render(tokenizer, [_QUESTION, _CALL], [_TOOL])
    # A call may close with a token of its own: only the last one ends the turn.
    if "look" in call and (last := re.search(rf"(?:{token})$", call.rstrip())):
        found.append(last.group())
    return tuple(dict.fromkeys(added[name] for name in found))


def _inner_end(tokenizer: Any, token: str) -> list[str]:
    """The token between an answer and the next turn, unless that turn begins with it."""
    text = _render(tokenizer, [_QUESTION, _ANSWER, _QUESTION], None)
    before, _, after = text.partition("reply")
    end = re.match(rf"\s*({token})", after)
    openings = re.findall(token, before.partition("question")[0])
    return [end[1]] if end and end[1] not in openings[-1:] else []


def _render(tokenizer: Any, turns: list[dict[str, Any]], tools: Any) -> str:
    try:
        with rendering(SECONDS):
            text: str = tokenizer.apply_chat_template(turns, tools=tools, tokenize=False)
    except TimeoutError:
        raise UserError(
            f"the chat template does not end within {SECONDS} seconds; "
            "name another template in model.chat_template"
        ) from None
    except Exception:  # A template may raise any class of exception.
        return ""
    return text


def _configured(folder: Path) -> tuple[str, tuple[int, ...]]:
    """The ids that transformers stops at, and the file that they are from."""
    for name in (GENERATION_CONFIG, "config.json"):
        if ids := end_ids(read_json(folder / name)):
            return name, ids
    return "config.json", ()


def end_ids(config: dict[str, Any]) -> tuple[int, ...]:
    """The eos_token_id of a config, which is one id, a list of them or null; -1 is none too."""
    value = config.get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    ids = (id for id in values if isinstance(id, int) and not isinstance(id, bool))
    return tuple(id for id in ids if 0 <= id < 2**31)


def read_json(file: Path) -> dict[str, Any]:
    """A file's JSON object; empty if there is no such file.

    Raises:
      UserError: if it is something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: is not JSON ({error}); download or copy it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: must be a JSON object; download or copy it again")
    return content
