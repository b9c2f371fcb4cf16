"""Records that can be meant in two ways: asked about, not guessed."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UserError

# Columns that say that not every record is to be learned, or not equally.
_LABELS = frozenset(["label", "labels", "kto_tag", "weight", "train", "loss", "loss_mask"])
# The same, if they hold true and false.
_VERDICTS = frozenset(["correct", "is_correct", "accepted", "preferred", "desirable", "completed"])
_MEDIA = frozenset(
    f"{kind}{ending}" for kind in ("image", "video", "audio") for ending in ("", "s", "_path")
)
_QUESTIONS = ("question", "instruction", "prompt", "query", "problem", "inputs", "input", "context")
_ANSWERS = (
    "answer", "answers", "code", "completion", "output", "outputs", "reply", "response",
    "responses", "solution", "canonical_solution", "summary", "target", "targets",
)  # fmt: skip


def choose_format(fields: Mapping[str, Any], fitting: Sequence[str]) -> str:
    """The format of a record whose fields fit several.

    Raises:
      UserError: if more than one of them may be meant.
    """
    if "text" in fitting and len(fitting) > 1 and _is_rendering(fields):
        fitting = [kind for kind in fitting if kind != "text"]
    if len(fitting) > 1:
        raise UserError(
            f"fits the formats {' and '.join(fitting)}; set data.format to the one that is meant"
        )
    if fitting[0] == "text":
        others = [name for name in (*_ANSWERS, *_QUESTIONS) if fields.get(name)]
        if others:
            raise UserError(
                f"has text and {others[0]!r}: set data.format to text to train on the text alone, "
                f"or name both with data.columns, as in {{prompt: text, completion: {others[0]}}}"
            )
    return fitting[0]


def suggest_columns(fields: Mapping[str, Any]) -> str:
    """What `data.columns` may be for a record that has no format's fields, or nothing."""
    found = [
        next((name for name in names if isinstance(fields.get(name), str)), None)
        for names in (_QUESTIONS, _ANSWERS)
    ]
    if None in found:
        return ""
    return f", such as {{instruction: {found[0]}, output: {found[1]}}}"


def refuse_labels(unused: Mapping[str, Any]) -> None:
    """Checks that no column beside those that are read says what is to be learned.

    Raises:
      UserError: for the first one that looks like a label or like images, video or audio.
    """
    for name, value in unused.items():
        if name in _LABELS or (name in _VERDICTS and isinstance(value, bool)):
            raise UserError(
                f"has a column {name!r} ({value!r:.40}), which looks like a label: keep the "
                f"records that are to be learned, and set data.ignore to [{name}]"
            )
        if name in _MEDIA and value not in ("", [], {}):
            raise UserError(
                f"has a column {name!r}, and only text is trained on: remove the records that need "
                f"it, and set data.ignore to [{name}]"
            )


def _is_rendering(fields: Mapping[str, Any]) -> bool:
    """Whether `text` holds the record's own answer, as rendered data sets have it."""
    answer = fields.get("output", fields.get("completion"))
    turns = fields.get("messages", fields.get("conversations"))
    if isinstance(turns, Sequence) and turns and isinstance(turns[-1], Mapping):
        answer = turns[-1].get("content", turns[-1].get("value"))
    return isinstance(answer, str) and answer.strip() in str(fields["text"])
