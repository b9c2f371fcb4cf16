"""The description of every key, as a page and as a JSON schema, from the keys' declarations."""

import json
from collections.abc import Iterator
from typing import Any, TypeAlias

from .base import MOST
from .root import Config

_MOST_KEYS = ("maximum", "exclusiveMaximum")
Schema: TypeAlias = dict[str, Any]

INTRODUCTION = """\
# Configuration

A run is described by one YAML file, such as those in `configs/`, which come with the program:
`--config configs/quickstart.yaml` needs no clone. `gmt-train init` writes one. Settings on the
command line replace or extend the file's, or are all there is: `gmt-train sft --config FILE
batch.size=64 optimizer.mask.kind=gmt`. A key that does not exist, or has no effect, is refused.

This page is generated: `gmt-train config` prints it. `gmt-train config --schema` prints a JSON
schema, with which an editor completes and checks a config: save it beside the config, and begin
that with `# yaml-language-server: $schema=gmt-train.schema.json`.
"""


def json_schema() -> str:
    """Returns the JSON schema of a config, for editors."""
    return json.dumps(Config.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


def reference() -> str:
    """Returns the page that describes every key: `docs/config.md`."""
    return "\n".join([INTRODUCTION, *_Reference(Config.model_json_schema()).lines(), ""])


class _Reference:
    def __init__(self, schema: Schema) -> None:
        self._root, self._definitions = schema, schema["$defs"]

    def lines(self) -> Iterator[str]:
        yield from self._section("A run", self._root)
        for key, schema in self._root["properties"].items():
            if "oneOf" in schema:
                yield from self._kinds(f"`{key}`", schema)
            elif "$ref" in (section := _section_of(schema)):
                yield from self._section(f"`{key}`", self._resolve(section))
                if key == "data":
                    source = self._definitions["Source"]
                    yield from self._section("A source in `data.train` or `data.eval`", source)
                if key == "optimizer":
                    mask = self._resolve(schema)["properties"]["mask"]
                    yield from self._kinds("`optimizer.mask`", mask)

    def _resolve(self, schema: Schema) -> Schema:
        resolved: Schema = self._definitions[schema["$ref"].rpartition("/")[2]]
        return resolved

    def _section(self, title: str, section: Schema) -> Iterator[str]:
        yield from (f"## {title}", "", _text(section), "")
        yield from ("| key | value | default | |", "|---|---|---|---|")
        for key, schema in section["properties"].items():
            if "$ref" not in _section_of(schema) and "oneOf" not in schema:
                yield self._row(key, schema, section)
        yield ""

    def _row(self, key: str, schema: Schema, section: Schema) -> str:
        required = key in section.get("required", ())
        default = "required" if required else f"`{_yaml(schema.get('default', {}))}`"
        return f"| `{key}` | {self._value(schema)} | {default} | {_text(schema)} |"

    def _kinds(self, title: str, union: Schema) -> Iterator[str]:
        """A union of sections: the kinds, and then the keys, each with the kinds that take it."""
        kinds = {
            schema["properties"]["kind"]["const"]: schema
            for schema in map(self._resolve, union["oneOf"])
        }
        yield from (f"## {title}", "", _text(union), "", "| kind | |", "|---|---|")
        for kind, schema in kinds.items():
            default = " (the default)" if "default" in schema["properties"]["kind"] else ""
            yield f"| `{kind}`{default} | {_text(schema)} |"
        yield from ("", "| key | value | default | | kinds |", "|---|---|---|---|---|")
        takers: dict[str, list[str]] = {}
        for kind, section in kinds.items():
            for key, schema in section["properties"].items():
                if key != "kind":
                    takers.setdefault(self._row(key, schema, section), []).append(kind)
        order = list(dict.fromkeys(row.split("|")[1] for row in takers))
        for row in sorted(takers, key=lambda row: order.index(row.split("|")[1])):
            others = [kind for kind in kinds if kind not in takers[row]]
            few = len(takers[row]) <= len(others)
            names = ", ".join(f"`{kind}`" for kind in (takers[row] if few else others))
            yield f"{row} {names if few else f'all but {names}'} |"
        yield ""

    def _value(self, schema: Schema) -> str:
        """What a value may be, in words."""
        return _join_or(self._values(schema))

    def _values(self, schema: Schema) -> list[str]:
        """The alternatives of a value."""
        if "$ref" in schema:
            return ["source"]
        if "anyOf" in schema:
            return [value for part in schema["anyOf"] for value in self._values(part)]
        if "enum" in schema:
            return [f"`{value}`" for value in schema["enum"]]
        match schema["type"]:
            case "boolean":
                return ["`true`", "`false`"]
            case "array":
                items = self._value(schema["items"])
                return ["list of these" if items == "text or source" else f"list of {items}"]
            case "object" if schema.get("additionalProperties") is True:
                return ["mapping of names to values"]
            case "object":
                return [f"mapping of text to {self._value(schema['additionalProperties'])}"]
            case "integer" | "number" as kind:
                return [kind + _bounds(schema)]
            case kind:
                return [{"null": "`null`", "string": "text"}[kind]]


def _section_of(schema: Schema) -> Schema:
    """The schema, without null where a section may be that."""
    match schema:
        case {"anyOf": [{"$ref": _} as section, {"type": "null"}]}:
            return dict(section)
    return schema


def _join_or(values: list[str]) -> str:
    *others, last = values
    return f"{', '.join(others)} or {last}" if others else last


def _bounds(schema: Schema) -> str:
    """What a number is limited to; that counts are at most MOST goes without saying."""
    if schema["type"] == "integer":
        schema = {k: v for k, v in schema.items() if k not in _MOST_KEYS or v < MOST}
    if "minimum" in schema and "maximum" in schema:
        return f" from {schema['minimum']:g} to {schema['maximum']:g}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[name]:g}" for name, sign in signs.items() if name in schema]
    return f" {', '.join(bounds)}" if bounds else ""


def _yaml(value: Any) -> str:
    """A default as it is written in YAML."""
    if isinstance(value, str):
        return value
    text = f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else json.dumps(value)
    return text.replace("|", "\\|")


def _text(schema: Schema) -> str:
    """A description on one line of a table."""
    return " ".join(schema.get("description", "").split()).replace("|", "\\|")
