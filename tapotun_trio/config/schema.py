"""The JSON Schema of the config file, for editors: made of the structs of `raw`, so it is what `decode` judges by.

It knows names, types, ranges and choices. What a text must look like inside, and what fits together, only the program
knows: ``tapotun validate-config``.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import msgspec

from .structs import RawClient, RawRoot, RawServer

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_PREFIX: Final = "Raw"  # of the structs' names; nobody else's business

Schema: TypeAlias = dict[str, Any]


def schema() -> Schema:
    """A new document."""
    template = "#/$defs/{name}"
    (root, server, client), components = msgspec.json.schema_components(
        [RawRoot, RawServer, RawClient], ref_template=template
    )
    interfaces = {"type": "array", "items": {"$ref": template.format(name="Interface")}, "minItems": 1}
    components["Interface"] = {
        "description": "An interface definition: a server if it has port or net, else a client.",
        "type": "object",
        "if": {"anyOf": [{"required": ["port"]}, {"required": ["net"]}]},
        "then": server,
        "else": client,
    }
    components[RawRoot.__name__]["properties"]["interfaces"] |= interfaces
    found: Schema = _renamed(
        {
            "$schema": DIALECT,
            "title": "Config of tapotun",
            "description": "A list of interface definitions, or an object that has it as interfaces.",
            "type": ["array", "object"],
            "if": {"type": "array"},
            "then": interfaces,
            "else": root,
            "$defs": dict(sorted(components.items())),
        }
    )
    return found


def _renamed(value: Any) -> Any:
    """The same with the structs called as people would."""
    if isinstance(value, dict):
        return {key.removeprefix(_PREFIX): _renamed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner) for inner in value]
    if isinstance(value, str):
        return value.replace(f"/{_PREFIX}", "/").removeprefix(_PREFIX).replace("``", "")
    return value
