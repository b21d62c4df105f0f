"""The JSON Schema of the config file, for editors. It is made from `structs`, so it agrees with `typecheck`.

It has names, types, ranges and choices. The syntax of texts and conflicts between values are checked only by
``tapotun validate-config``.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import msgspec

from .structs import RawClient, RawRoot, RawServer

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_PREFIX: Final = "Raw"  # the prefix of the structs' names, which the schema leaves out

Schema: TypeAlias = dict[str, Any]


def schema() -> Schema:
    """A new copy of the schema."""
    template = "#/$defs/{name}"
    (root, server, client), components = msgspec.json.schema_components(
        [RawRoot, RawServer, RawClient], ref_template=template
    )
    interfaces = {"type": "array", "items": {"$ref": template.format(name="Interface")}, "minItems": 1}
    components["Interface"] = {
        "description": "An interface definition: a server if it has port, net or listen, else a client.",
        "type": "object",
        "if": {
            "anyOf": [
                {"required": ["port"]},
                {"required": ["net"]},
                {"required": ["listen"], "not": {"required": ["server"]}},
            ]
        },
        "then": server,
        "else": client,
    }
    components[RawRoot.__name__]["properties"]["interfaces"] |= interfaces
    # Only a TAP interface needs neither a network nor addresses of clients.
    components[RawServer.__name__] |= {
        "if": {"properties": {"device": {"const": "tap"}}, "required": ["device"]},
        "else": {"required": ["net"], "properties": {"clients": {"items": {"required": ["ip"]}}}},
    }
    document: Schema = _without_prefix(
        {
            "$schema": DIALECT,
            "title": "Config of tapotun",
            "description": "A list of interface definitions, or an object that has it as interfaces.",
            # These two are not part of JSON Schema. VS Code, and other editors with its language server, then accept
            # both.
            "allowComments": True,
            "allowTrailingCommas": True,
            "type": ["array", "object"],
            "if": {"type": "array"},
            "then": interfaces,
            "else": root,
            "$defs": dict(sorted(components.items())),
        }
    )
    return document


def _without_prefix(value: Any) -> Any:
    """A copy with the structs' prefix removed from every key, reference and title, and without reST marks."""
    if isinstance(value, dict):
        return {key.removeprefix(_PREFIX): _without_prefix(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_prefix(inner) for inner in value]
    if isinstance(value, str):
        return value.replace(f"/{_PREFIX}", "/").removeprefix(_PREFIX).replace("``", "")
    return value
