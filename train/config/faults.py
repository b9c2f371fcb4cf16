"""What pydantic found wrong with a config, as messages that name the key and what to do."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from .base import Section


def explain(error: ValidationError, root: type[Section]) -> list[str]:
    """Returns one message for each fault in a tree that was to become a `root`."""
    return [_explain(fault, root) for fault in error.errors()]


def _explain(fault: ErrorDetails, root: type[Section]) -> str:
    path, section, others = _locate(fault["loc"], root)
    where, given = ".".join(path) or "config", fault["input"]
    kind = f"kind is {_kind(section)!r}" if others else ""
    match fault["type"]:
        case "extra_forbidden":
            if any(path[-1] in other.model_fields for other in others):
                section_key = ".".join(path[:-1])
                return (
                    f"{where} has no effect when {kind}; remove it, or replace the section with "
                    f"{section_key}={{kind: {_kind(section)}}}"
                )
            if places := list(dict.fromkeys(_places(path[-1], root))):
                return f"unknown key {where}; {_belongs(path[-1], places)}"
            known = [".".join([*path[:-1], key]) for key in section.model_fields]
            return f"unknown key {where}; " + _nearest(where, known)
        case "missing":
            return f"{where} is required when {kind}" if kind else f"{where} is missing; set it"
        case "union_tag_invalid":
            found, known = str(fault["ctx"]["tag"]), fault["ctx"]["expected_tags"]
            return f"{where}.kind: unknown kind {found!r}; " + _nearest(
                repr(found), known.split(", ")
            )
        case "model_type" | "model_attributes_type":
            return f"{where}: must contain keys and values, got {given!r}"
    message = fault["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{where}: {message}" + ("" if isinstance(given, dict) else f", got {given!r}")


def _places(key: str, section: type[Section], prefix: str = "") -> Iterator[str]:
    """The dotted names of all keys of this name."""
    for name, field in section.model_fields.items():
        if name == key:
            yield f"{prefix}{name}"
        for part in sections_of(field.annotation):
            yield from _places(key, part, f"{prefix}{name}.")


def _belongs(key: str, places: Sequence[str]) -> str:
    """What to write in place of a key that stands in the wrong section."""
    if f"data.train.{key}" in places:
        return f"it belongs to a source: data.train={{path: …, {key}: …}}"
    return f"it belongs elsewhere: {' or '.join(places)}"


def _nearest(given: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _locate(
    location: tuple[int | str, ...], root: type[Section]
) -> tuple[list[str], type[Section], list[type[Section]]]:
    """Follows pydantic's location, in which the kind of a section stands behind its key.

    Returns:
      The keys of the location, without kinds; the section that holds the last one; and if that
      section is one of several kinds, all of them.
    """
    path: list[str] = []
    section, kinds = root, []
    here = [root]  # the kinds of section at this point of the location
    for part in location:
        if len(here) > 1:  # this part is the kind
            kinds, here = here, [kind for kind in here if _kind(kind) == part]
            section = here[0]
            continue
        path.append(str(part))
        if isinstance(part, str):  # not the index of a list
            if here:
                section = here[0]
            if part in section.model_fields:
                here = list(sections_of(section.model_fields[part].annotation))
    return path, section, kinds


def sections_of(annotation: Any) -> Iterator[type[Section]]:
    """The section classes that a field's type names, such as all kinds of a union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from sections_of(part)


def _kind(section: type[Section]) -> str:
    """The value of `kind` that selects the section."""
    value: str = get_args(section.model_fields["kind"].annotation)[0]
    return value
