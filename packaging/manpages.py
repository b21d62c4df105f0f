"""Makes the man pages in build/man from the templates in packaging/man.

Subcommands and options come from the parser, exit codes from `exit_codes`, and the fields of the config from
docs/config.md, which a test compares with the schema. So nothing is missing or out of date. The pages are written in
man(7), which groff and mandoc both support.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from tapotun_trio import exit_codes
from tapotun_trio.cli import build_parser
from tapotun_trio.shell.usage import Argument, Verb, verbs
from vendor import BUILD, ROOT, source_date, version

MAN: Final = ROOT / "packaging" / "man"
_EXAMPLES: Final = ROOT / "conf" / "examples"
REFERENCE: Final = ROOT / "docs" / "config.md"


def main() -> None:
    """Write both pages."""
    directory = BUILD / "man"
    directory.mkdir(parents=True, exist_ok=True)
    parts = {"@VERBS@": _verbs(), "@EXITS@": _exits()}
    (directory / "tapotun.8").write_text(_page("tapotun", "8", parts), encoding="utf-8")
    parts = {"@STRUCTS@": _reference(REFERENCE.read_text(encoding="utf-8"))}
    for name in ("server", "client"):
        text = json.dumps(json.loads((_EXAMPLES / f"{name}-minimal.json").read_text(encoding="utf-8")), indent=2)
        parts[f"@{name.upper()}@"] = "\n".join(_text(line) for line in text.splitlines())
    (directory / "tapotun.json.5").write_text(_page("tapotun.json", "5", parts), encoding="utf-8")


def _page(name: str, section: str, parts: dict[str, str]) -> str:
    date = datetime.fromtimestamp(source_date(), UTC).date().isoformat()
    text = (MAN / f"{name}.{section}.in").read_text(encoding="utf-8")
    for marker, part in parts.items():
        text = text.replace(marker, part)
    manual = {"5": "File Formats", "8": "System Administration"}[section]
    head = f'.\\" Made by packaging/manpages.py\n.TH {name.upper()} {section} {date} "tapotun {version()}" "{manual}"\n'
    return head + text


# ------------------------------------------------------------------ tapotun(8)


def _verbs() -> str:
    return "\n".join(line for verb in verbs(build_parser()) for line in _verb(verb))


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
    words += [shapes.get(str(argument.nargs), "{}").format(argument.metavar) for argument in verb.positionals]
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
    """The exit codes, with the comments of `exit_codes` as their descriptions."""
    lines = []
    source = (ROOT / "tapotun_trio" / "exit_codes.py").read_text(encoding="utf-8")
    for name, text in re.findall(r"(?m)^([A-Z_]+): Final = \d+  # (.+)$", source):
        lines += [".TP", f".B {getattr(exit_codes, name)}", _sentence(text)]
    assigned = [node for node in ast.parse(source).body if isinstance(node, ast.AnnAssign)]
    if len(assigned) * 3 != len(lines):
        raise SystemExit("exit_codes.py has a code without a comment that explains it")
    return "\n".join(lines)


# ------------------------------------------------------------------ tapotun.json(5)


def _reference(page: str) -> str:
    """The page from its first section up to its examples.

    Each object becomes a section, and each field a tagged paragraph.
    """
    lines: list[str] = []
    indented = False  # inside the paragraph of a field
    fields = page[page.index("\n## ") : page.index("\n## Example files\n")]
    for block in fields.strip().split("\n\n"):
        for heading, text in re.findall(r"(?m)^(#{2,3}) (.+)$", block):
            indented = heading == "###"
            field = re.fullmatch(r"(\w+): `(.+)`", text)
            lines += [".TP", f".B {_text(_full_name(*field.groups()))}"] if field else [f".SH {_text(text.upper())}"]
        text = re.sub(r"(?m)^#+ .+\n?", "", block)
        if text.startswith("- "):
            items = text[2:].split("\n- ")
            lines += [".RS", *(line for item in items for line in (r".IP \(bu 2", _paragraph(item))), ".RE"]
        elif text and block.startswith("#"):
            lines.append(_paragraph(text))
        elif text:
            first = lines[-1].startswith(".SH")
            lines += [*([".IP" if indented else ".PP"] if not first else []), _paragraph(text)]
    return "\n".join(lines)


def _full_name(struct: str, field: str) -> str:
    """Return the field's name as error messages show it, such as ``tls.ca_file``. Fields of the root and of an
    interface definition have no prefix."""
    if struct in ("root", "server", "client"):
        return field
    return f"{struct}[].{field}" if struct == "clients" else f"{struct}.{field}"


def _paragraph(markdown: str) -> str:
    """One paragraph without Markdown. A link within the page names its section; any other link becomes its text."""

    def link(match: re.Match[str]) -> str:
        return f"{match[1]} (see {match[2].replace('-', ' ').upper()})" if match[2] else match[1]

    text = re.sub(r"\[([^]]+)\]\((?:#([^)]+)|[^)]+)\)", link, markdown)
    text = re.sub(r"\*\*(.+?)\*\*|`(.+?)`", lambda match: match[1] or match[2], text)
    return "\n".join(map(_text, _wrapped(" ".join(text.split()))))


# ------------------------------------------------------------------ man(7)


def _text(text: str) -> str:
    """Plain text, escaped for man(7), on one line."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("^", "\\(ha")
    escaped = escaped.replace("~", "\\(ti").replace("`", "\\(ga")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _sentence(text: str) -> str:
    """Put each sentence of a plain text on a line of its own, with a capital letter first and a full stop last.

    A first word that must keep its spelling, such as ``tls.ca_file`` or ``validate-config:``, gets no capital letter.
    """
    text = " ".join(text.split())
    if re.match(r"[A-Za-z]+(-[a-z]+)?( |,|;|$)", text):
        text = text[:1].upper() + text[1:]
    if not text.endswith((".", ")", ":")):
        text += "."
    lines = (line for sentence in text.replace(". Default", ".\nDefault").splitlines() for line in _wrapped(sentence))
    return "\n".join(map(_text, lines))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 70, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    main()
