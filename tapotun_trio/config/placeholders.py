"""Finds placeholders that a template or a copied example has left in the file: ``${TOKEN}``, ``{{ token }}``, ``<raw
token>``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from .diagnostics import MASK, Findings, item, member

PROBLEM: Final = "looks like a placeholder, and nothing here fills it in"

# Anywhere in a value: the forms of shells, Docker, Ansible, Jinja, ERB and Go templates.
_WITHIN: Final = re.compile(r"\$\{[^}]*\}|\{\{.{0,200}?\}\}|\{%.{0,200}?%\}|<%.{0,200}?%>|\$\([^)]+\)")
# As the whole value: a variable, a tag of sed or autoconf, a reference to a secret store, or words for a person.
_WHOLE: Final = re.compile(
    r"\$[A-Za-z_][A-Za-z0-9_]*|%[A-Za-z_][A-Za-z0-9_]*%|@[A-Za-z_][A-Za-z0-9_]*@|__[A-Z][A-Z0-9_]*__"
    r"|<[^<>\"]+>|(?:env|file|vault|op|sops|secret|ref\+\w+):[^\"]*"
    r"|(?i:change[-_ ]?(?:me|this)|replace[-_ ]?(?:me|this)|(?:your|insert|enter|put)[-_ ][^\"]*"
    r"|todo|fixme|tbd|placeholder|x{3,}|\*{3,}|\.{3}|…)"
)
_ADDRESS: Final = re.compile(r"[0-9a-f.:/]+")  # skipped first, since a file may have a million


def is_placeholder(text: str) -> bool:
    """Whether the text looks like a placeholder. A real token may look like one too, but that is very rare."""
    return bool(_WITHIN.search(text) or _WHOLE.fullmatch(text))


def warn_placeholders(root: object, findings: Findings) -> None:
    """Warn of every value that looks like a placeholder and that was not reported as an error already.

    Does not recurse.
    """
    reported = {finding.path for finding in findings.found if finding.severity == "error"}
    for path, value in _strings(root):
        if is_placeholder(value) and path not in reported:
            secret = path.endswith("token")
            remedy = "write the raw token, or name its file in token_file" if secret else "write the value itself"
            findings.warning(path, MASK, PROBLEM, remedy)


def _strings(root: object) -> Iterator[tuple[str, str]]:
    left: list[tuple[str, object]] = [("", root)]
    while left:
        path, value = left.pop()
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, dict):
            left += [(member(path, key), part) for key, part in value.items()]
        elif isinstance(value, list):
            left += [
                (item(path, at), part)
                for at, part in enumerate(value)
                if not (isinstance(part, str) and _ADDRESS.fullmatch(part))
            ]
