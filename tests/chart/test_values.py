"""values.yaml, its schema and the page about it name the same values."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from charting import CHART, ROOT

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def leaves(values: dict[str, Any], schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that a person sets as one, with its default: what the schema leaves open is one."""
    for name, value in values.items():
        inner = resolved(schema["properties"][name])
        if isinstance(value, dict) and "properties" in inner and name != "resources":
            yield from leaves(value, inner, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    found = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    assert isinstance(found, dict)
    return found


def test_the_schema_knows_every_value_and_no_other() -> None:
    def compare(values: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        schema = resolved(schema)
        assert schema.get("additionalProperties") is False, path
        assert set(schema["properties"]) - {"global"} == set(values), path
        for name, value in values.items():
            if isinstance(value, dict) and value and name != "resources":
                compare(value, schema["properties"][name], f"{path}.{name}")

    compare(VALUES, SCHEMA, "values")


def test_the_page_has_every_value_with_its_default() -> None:
    page = (ROOT / "docs/install.md").read_text()
    rows = {name: json.loads(default) for name, default in re.findall(r"^\| `(\S+)` \| `(.+?)` \|", page, re.MULTILINE)}
    assert rows == dict(leaves(VALUES, SCHEMA))


def test_the_page_names_files_that_are_there() -> None:
    page = (ROOT / "docs/install.md").read_text()
    for path in re.findall(r"-f (\S+\.yaml)", page):
        assert (ROOT / path).is_file(), path
    for link in re.findall(r"\]\((\.\./\S+?)\)", page):
        assert (ROOT / "docs" / link).is_file(), link
