"""docs/config.md has every field of the config and agrees with the schema. The man page is made of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tapotun_trio.config.schema import schema
from tapotun_trio.config.structs import NAMES

ROOT: Final = Path(__file__).parents[2]
REFERENCE: Final = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")

# The prefix of the fields' headings, for each struct of the schema.
PREFIXES: Final = {
    "Root": "root",
    "Server": "server",
    "AllowedClient": "clients",
    "Client": "client",
    "Tls": "tls",
    "Mark": "mark",
    "Bridge": "bridge",
    "Admin": "admin",
    "Log": "log",
    "Update": "update",
}
TYPES: Final = {
    "string": ("a string", "strings"),
    "integer": ("a whole number", "whole numbers"),
    "number": ("a number", "numbers"),
    "boolean": ("true or false", ""),
}
STRUCTS: Final[dict[str, Any]] = schema()["$defs"]


def facts(struct: str, field: str) -> str:
    """The line below a field's heading: type, whether it is required, its default, an example."""
    value = STRUCTS[struct]["properties"][field]
    alternatives = value.get("anyOf", [value])
    kind = " or ".join(dict.fromkeys(_type(alternative) for alternative in alternatives))
    sentences = [f"**Type:** {kind}."]
    if field in STRUCTS[struct]["required"]:
        sentences.append("**Required.**")
    elif "default" in value:
        sentences.append(f"**Default:** `{json.dumps(value['default'])}`.")
    described = [value, *alternatives, *(alternative.get("items", {}) for alternative in alternatives)]
    examples: list[Any] = next((part["examples"] for part in described if part.get("examples")), [])
    if examples and examples[0] != value.get("default"):
        sentences.append(f"**Example:** {', '.join(f'`{json.dumps(example)}`' for example in examples)}.")
    return " ".join(sentences)


def _type(value: dict[str, Any], *, plural: bool = False) -> str:
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        one, several = {
            "Interface": ("an interface definition", "interface definitions"),
            "AllowedClient": ("an [object](#an-entry-of-clients)", "[objects](#an-entry-of-clients)"),
        }.get(name, (f"an [object](#the-{PREFIXES.get(name)}-object)", ""))
        return several if plural else one
    if "enum" in value:
        return " or ".join(f"`{json.dumps(choice)}`" for choice in value["enum"])
    if value["type"] == "array":
        if "prefixItems" in value:
            return f"a list of {len(value['prefixItems'])} {_type(value['prefixItems'][0], plural=True)}"
        most = f", at most {value['maxItems']}" if "maxItems" in value else ""
        return f"a list of {_type(value['items'], plural=True)}{most}"
    one, several = TYPES.get(value["type"], ("an object", "objects"))
    if "maxLength" in value:
        return f"{one} of {value['minLength']} to {value['maxLength']} bytes"
    bounds = f", {value['minimum']} to {value['maximum']}" if "minimum" in value else ""
    return (several if plural else one) + bounds


def fields() -> Iterator[tuple[str, str]]:
    for struct in PREFIXES:
        yield from ((struct, field) for field in STRUCTS[struct]["properties"])


def sections() -> dict[str, str]:
    """The headings of the fields in the page, and the text below each."""
    parts = re.split(r"(?m)^###? (.+)\n", REFERENCE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_struct_has_a_prefix() -> None:
    assert len(PREFIXES) == len(NAMES)
    assert PREFIXES.keys() == STRUCTS.keys() - {"Interface"}


def test_the_page_has_every_field_and_no_other() -> None:
    headings = re.findall(r"(?m)^### (.+)$", REFERENCE)
    assert headings == [f"{PREFIXES[struct]}: `{field}`" for struct, field in fields()]


@pytest.mark.parametrize(("struct", "field"), [*fields()])
def test_the_page_agrees_with_the_schema(struct: str, field: str) -> None:
    first, _, rest = sections()[f"{PREFIXES[struct]}: `{field}`"].partition("\n")
    assert first == facts(struct, field)
    assert len(rest.strip()) > 10  # and what it is for
