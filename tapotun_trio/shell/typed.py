"""Rewrites the typed arguments for argparse: the subcommand first."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from typing import Final

DEFAULT_PAUSE_S: Final = 2.0
VERBS: Final = frozenset(
    {"run", "server", "client", "validate-config", "token", "status", "wait", "disconnect", "reload", "probe", "doctor"}
    | {"schema", "launcher", "completion", "update"}
)
_CLOSE: Final = 0.7  # least ratio of difflib; with its default of 0.6, "frob" would match "probe"
_BEGUN_CHARS: Final = 3
_WITH_FILE: Final = ("run", "server", "client", "validate-config")
_RUN_OPTIONS: Final = ("--log-level", "--log-format", "--name", "--user", "--notify-fd", "--ready-timeout")
_OWN_OPTIONS: Final = frozenset({"-h", "--help", "--version"})

# Verbs of other programs whose spelling is not close to any of ours.
_MEANINGS: Final = {
    **dict.fromkeys(("up", "start", "serve", "daemon", "launch", "exec"), "run"),
    **dict.fromkeys(("connect", "join", "dial"), "client"),
    **dict.fromkeys(("show", "list", "ls", "ps", "info", "top", "peers", "stats", "dump"), "status"),
    **dict.fromkeys(("check", "test", "verify", "lint", "validate", "configtest"), "validate-config"),
    **dict.fromkeys(("genkey", "keygen", "pubkey", "genpsk", "key", "hash", "secret", "new"), "token"),
    **dict.fromkeys(("refresh", "sync", "syncconf", "setconf", "reconfigure", "hup"), "reload"),
    **dict.fromkeys(("kick", "drop", "kill", "ban"), "disconnect"),
    **dict.fromkeys(("ping", "trace", "measure", "speedtest"), "probe"),
    **dict.fromkeys(("diagnose", "debug", "troubleshoot"), "doctor"),
    **dict.fromkeys(("completions", "complete"), "completion"),
    **dict.fromkeys(("upgrade", "self-update", "selfupdate"), "update"),
}
_STOPPING: Final = "a process is stopped by Ctrl-C, by SIGTERM, or by its service manager: systemctl stop tapotun@NAME"
_ADVICE: Final = {
    **dict.fromkeys(("stop", "down", "quit", "exit", "shutdown"), _STOPPING),
    "restart": "tapotun reload reads the config again; systemctl restart tapotun@NAME restarts a service",
    "version": "did you mean: tapotun --version",
}


class UnknownVerbError(Exception):
    """The first word is neither a verb nor a file. The text is for the user."""


def with_verb(argv: Sequence[str]) -> list[str]:
    """``tapotun [OPTION...] FILE`` means ``tapotun run [OPTION...] FILE``, as deployed users start it.

    Raises UnknownVerbError.
    """
    if not argv or argv[0] in _OWN_OPTIONS:
        return list(argv)
    # Options of `run` may come before an explicit subcommand: put the subcommand first.
    for at, word in enumerate(argv):
        takes_value = at > 0 and argv[at - 1] in _RUN_OPTIONS
        if not word.startswith("-") and not takes_value:
            others = [*argv[:at], *argv[at + 1 :]]
            if word in VERBS:
                return _with_pause([word, *others]) if word == "status" else [word, *others]
            after_unknown = at > 0 and argv[at - 1].startswith("-") and "=" not in argv[at - 1]
            if not _may_be_file(word) and not after_unknown:
                raise UnknownVerbError(f"{word!r} is neither a verb nor a file; {_advice(word, others)}")
            break
    return ["run", *argv]


def _may_be_file(word: str) -> bool:
    return not word or "/" in word or "." in word or (os.path.lexists(word) and not os.path.isdir(word))


def _advice(word: str, others: Sequence[str]) -> str:
    """Return a hint about what to type instead."""
    word = word.lower()
    if advice := _ADVICE.get(word):
        return advice
    if word == "help":
        verb = next((other for other in others if other in VERBS), None)
        return f"did you mean: tapotun {verb} --help" if verb else "did you mean: tapotun --help"
    verb = _MEANINGS.get(word) or closest(word, VERBS)
    if verb is None:
        return "tapotun --help lists the verbs"
    missing = verb in _WITH_FILE and all(other.startswith("-") for other in others)
    return f"did you mean: {shlex.join(['tapotun', verb, *others])}{' FILE' if missing else ''}"


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that the user probably meant, if ``word`` is misspelt or shortened; None: no word is
    close."""
    from difflib import get_close_matches  # imported here, as in `config.typecheck`

    names = sorted(known)
    begun = [name for name in names if name.startswith(word)]
    if len(word) >= _BEGUN_CHARS and len(begun) == 1:
        return begun[0]
    return next(iter(get_close_matches(word, names, n=1, cutoff=_CLOSE)), None)


def unrecognized(words: Sequence[str], options: Iterable[str]) -> str:
    """Return the error for arguments that the subcommand does not take. ``options``: the options that it has."""
    names = [option.removeprefix("--") for option in options if option.startswith("--")]
    text = f"unrecognized arguments: {' '.join(words)}"
    for word in words:
        if word.startswith("--") and (meant := closest(word[2:].partition("=")[0], names)) is not None:
            text += f"; did you mean --{meant}"
    return text


def _with_pause(argv: list[str]) -> list[str]:
    """``--watch tun0`` means an interface; argparse would take the word for the seconds."""
    for at, word in enumerate(argv[:-1]):
        if word == "--watch" and not argv[at + 1][:1].isdigit():
            return [*argv[:at], f"--watch={DEFAULT_PAUSE_S}", *argv[at + 1 :]]
    return argv
