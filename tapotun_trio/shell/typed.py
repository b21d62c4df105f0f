"""Rewrites the typed arguments for argparse: the subcommand first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

DEFAULT_PAUSE_S: Final = 2.0
VERBS: Final = frozenset(
    {"run", "server", "client", "validate-config", "token", "status", "wait", "disconnect", "reload", "probe", "doctor"}
    | {"schema", "completion"}
)
_RUN_OPTIONS: Final = ("--log-level", "--log-format", "--name", "--notify-fd", "--ready-timeout")
_OWN_OPTIONS: Final = frozenset({"-h", "--help", "--version"})


def with_verb(argv: Sequence[str]) -> list[str]:
    """``tapotun [OPTION...] FILE`` means ``tapotun run [OPTION...] FILE``, as deployed users start it."""
    if not argv or argv[0] in _OWN_OPTIONS:
        return list(argv)
    # Options of `run` may come before an explicit subcommand: put the subcommand first.
    for at, word in enumerate(argv):
        takes_value = at > 0 and argv[at - 1] in _RUN_OPTIONS
        if not word.startswith("-") and not takes_value:
            if word in VERBS or _is_mistyped(word):
                found = [word, *argv[:at], *argv[at + 1 :]]
                return _with_pause(found) if word == "status" else found
            break
    return ["run", *argv]


def _is_mistyped(word: str) -> bool:
    """Whether the word is more likely a subcommand than a file. argparse then lists the subcommands."""
    if not word or "/" in word or "." in word or os.path.lexists(word):
        return False
    from difflib import get_close_matches  # imported here, as in `config.typecheck`

    return bool(get_close_matches(word, VERBS, n=1))


def _with_pause(argv: list[str]) -> list[str]:
    """``--watch tun0`` means an interface; argparse would take the word for the seconds."""
    for at, word in enumerate(argv[:-1]):
        if word == "--watch" and not argv[at + 1][:1].isdigit():
            return [*argv[:at], f"--watch={DEFAULT_PAUSE_S}", *argv[at + 1 :]]
    return argv
