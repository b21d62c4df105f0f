"""Makes the man pages in build/man: what does not change from packaging/man, the rest from the program itself.

Verbs and options are the parser's, exit codes those of `exits`, fields those of the config's schema, so nothing can be
missing or out of date. Written in man(7), which groff and mandoc both know.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from tapotun_trio import exits
from tapotun_trio.cli import _parser
from tapotun_trio.config.schema import schema
from tapotun_trio.shell.usage import Argument, Verb, verbs
from vendor import BUILD, ROOT, source_date, version

MAN: Final = ROOT / "packaging" / "man"
_EXAMPLES: Final = ROOT / "conf" / "examples"
# Every object of a file, in the order of a reader. What is not here would be missing: `_structs` refuses that.
_STRUCTS: Final = {
    "Root": "THE FILE'S ROOT, IF IT IS AN OBJECT",
    "Server": "A SERVER",
    "AllowedClient": "AN ENTRY OF A SERVER'S CLIENTS",
    "Client": "A CLIENT",
    "Tls": "THE TLS OF A CLIENT",
    "Mark": "THE MARK OF A SERVER OR A CLIENT",
    "Admin": "THE ADMIN LISTENER",
    "Log": "THE LOG",
}


def main() -> None:
    """Write both pages."""
    place = BUILD / "man"
    place.mkdir(parents=True, exist_ok=True)
    parts = {"@VERBS@": _verbs(), "@EXITS@": _exits()}
    (place / "tapotun.8").write_text(_page("tapotun", "8", parts), encoding="utf-8")
    parts = {"@STRUCTS@": _structs(schema()["$defs"])}
    for name in ("server", "client"):
        text = json.dumps(json.loads((_EXAMPLES / f"{name}-minimal.json").read_text(encoding="utf-8")), indent=2)
        parts[f"@{name.upper()}@"] = "\n".join(_text(line) for line in text.splitlines())
    (place / "tapotun.json.5").write_text(_page("tapotun.json", "5", parts), encoding="utf-8")


def _page(name: str, section: str, parts: dict[str, str]) -> str:
    date = datetime.fromtimestamp(source_date(), UTC).date().isoformat()
    text = (MAN / f"{name}.{section}.in").read_text(encoding="utf-8")
    for place, part in parts.items():
        text = text.replace(place, part)
    manual = {"5": "File Formats", "8": "System Administration"}[section]
    head = f'.\\" Made by packaging/manpages.py\n.TH {name.upper()} {section} {date} "tapotun {version()}" "{manual}"\n'
    return head + text


# ------------------------------------------------------------------ tapotun(8)


def _verbs() -> str:
    return "\n".join(line for verb in verbs(_parser()) for line in _verb(verb))


def _verb(verb: Verb) -> Iterator[str]:
    yield f".SS {_synopsis(verb)}"
    yield _sentence(verb.description)
    for argument in (*verb.positionals, *verb.options):
        if "--help" not in argument.flags:
            yield ".TP"
            yield _head(argument)
            yield _sentence(argument.help)


def _synopsis(verb: Verb) -> str:
    words = [verb.name]
    if verb.options[1:]:  # the first is --help
        words.append("[OPTION...]")
    shapes = {"*": "[{}...]", "?": "[{}]"}
    words += [shapes.get(str(it.nargs), "{}").format(it.metavar) for it in verb.positionals]
    return _text(" ".join(words))


def _head(argument: Argument) -> str:
    if not argument.flags:
        return f".I {_text(argument.metavar)}"
    heads = []
    for flag in argument.flags:
        value = f" {argument.metavar}" if argument.metavar else ""
        heads.append(_text(flag + (f" [{argument.metavar}]" if argument.nargs == "?" else value)))
    return f".B {', '.join(heads)}"


def _exits() -> str:
    """From the comments beside the codes, which are the one place that says what each means."""
    lines = []
    source = (ROOT / "tapotun_trio" / "exits.py").read_text(encoding="utf-8")
    for name, text in re.findall(r"(?m)^([A-Z_]+): Final = \d+  # (.+)$", source):
        lines += [".TP", f".B {getattr(exits, name)}", _sentence(text)]
    assigned = [node for node in ast.parse(source).body if isinstance(node, ast.AnnAssign)]
    if len(assigned) * 3 != len(lines):
        raise SystemExit("exits.py has a code without a comment that says what it means")
    return "\n".join(lines)


# ------------------------------------------------------------------ tapotun.json(5)


def _structs(found: dict[str, Any]) -> str:
    if unknown := found.keys() - _STRUCTS.keys() - {"Interface"}:
        raise SystemExit(f"packaging/manpages.py: give {', '.join(sorted(unknown))} a heading in _STRUCTS")
    lines: list[str] = []
    for name, heading in _STRUCTS.items():
        struct = found[name]
        lines += [f".SH {_text(heading)}", _sentence(struct["description"])]
        for field, value in struct["properties"].items():
            lines += [".TP", f".B {_text(field)}", *_field(value, field in struct["required"])]
    return "\n".join(lines)


def _field(value: dict[str, Any], required: bool) -> Iterator[str]:
    alternatives: list[dict[str, Any]] = value.get("anyOf", [value])
    described = [it for it in (value, *alternatives, value.get("items", {})) if isinstance(it, dict)]
    # Of a list what it is for, and else what its elements are.
    if description := next((it["description"] for it in described if "description" in it), None):
        yield _sentence(description)
    yield _sentence(" or ".join(dict.fromkeys(map(_type, alternatives))))
    if required:
        yield "Required."
    elif "default" in value:
        yield _sentence(f"Default: {json.dumps(value['default'])}")
    examples: list[Any] = next((it["examples"] for it in described if it.get("examples")), [])
    if examples and examples[0] != value.get("default"):
        yield _sentence("For example " + ", ".join(json.dumps(it) for it in examples))


def _type(value: dict[str, Any]) -> str:
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return "an interface definition" if name == "Interface" else f"an object, see {_STRUCTS[name]}"
    if "enum" in value:
        return "one of " + ", ".join(map(json.dumps, value["enum"]))
    if value["type"] == "array":
        if "prefixItems" in value:
            return f"a list of {len(value['prefixItems'])}: " + _type(value["prefixItems"][0])
        most = f", at most {value['maxItems']}" if "maxItems" in value else ""
        return f"a list of: {_type(value['items'])}{most}"
    bounds = f", {value['minimum']} to {value['maximum']}" if "minimum" in value else ""
    if "maxLength" in value:
        bounds = f", of {value['minLength']} to {value['maxLength']} bytes"
    names = {"string": "text", "integer": "a whole number", "number": "a number", "boolean": "true or false"}
    return names.get(value["type"], "an object") + bounds


# ------------------------------------------------------------------ man(7)


def _text(text: str) -> str:
    """Plain text as it stands, in one line."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("^", "\\(ha")
    escaped = escaped.replace("~", "\\(ti").replace("`", "\\(ga")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _sentence(text: str) -> str:
    """Plain text as one or more sentences, each on a line of its own: they begin large and end with a dot."""
    text = " ".join(text.split())
    text = text[:1].upper() + text[1:]
    if not text.endswith((".", ")", ":")):
        text += "."
    lines = (line for sentence in text.replace(". Default", ".\nDefault").splitlines() for line in _wrapped(sentence))
    return "\n".join(map(_text, lines))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 70, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    main()
