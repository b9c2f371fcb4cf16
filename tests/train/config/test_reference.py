"""The page and the schema describe every key; the page in docs/ is the generated one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.config import Config
from train.config.base import Section
from train.config.faults import sections_of
from train.config.reference import json_schema, reference

PAGE = Path(__file__).parents[3] / "docs" / "config.md"


def _sections(section: type[Section]) -> Iterator[type[Section]]:
    yield section
    for field in section.model_fields.values():
        for inner in sections_of(field.annotation):
            yield from _sections(inner)


SECTIONS = set(_sections(Config))


def test_the_page_in_docs_is_current() -> None:
    message = "run: gmt-train config > docs/config.md"
    assert PAGE.read_text(encoding="utf-8") == reference(), message


def test_every_key_and_section_is_described() -> None:
    assert len(SECTIONS) > 15
    undescribed = [
        f"{section.__name__}.{name}"
        for section in SECTIONS
        for name, field in section.model_fields.items()
        if name != "kind" and not field.description and not list(sections_of(field.annotation))
    ]
    assert undescribed == []
    assert [section for section in SECTIONS if not section.__doc__] == []


def test_every_key_is_on_the_page() -> None:
    page = reference()
    keys = {
        name
        for section in SECTIONS
        for name, field in section.model_fields.items()
        if name in ("train", "eval") or not list(sections_of(field.annotation))
    }
    assert {key for key in keys - {"kind"} if f"| `{key}` |" not in page} == set()


def test_the_schema_knows_short_forms_and_refuses_unknown_keys() -> None:
    schema: dict[str, Any] = json.loads(json_schema())
    assert schema["additionalProperties"] is False
    data = schema["$defs"]["DataSection"]["properties"]
    assert {"type": "string"} in data["train"]["anyOf"]
    mask = schema["$defs"]["OptimizerSection"]["properties"]["mask"]
    kinds = mask["discriminator"]["mapping"]
    assert {"gmt_mask", "lisa", "none"} < kinds.keys()
    without_kind = [
        kind
        for kind, reference in kinds.items()
        if "kind" not in schema["$defs"][reference.rpartition("/")[2]].get("required", [])
    ]
    assert without_kind == ["gmt_mask"]
