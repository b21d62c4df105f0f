"""The completion for fish 3 and newer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from .usage import Argument, Verb

_HEAD: Final = """\
# Completion of tapotun for fish, made by `tapotun completion fish`.
# In ~/.config/fish/config.fish: tapotun completion fish | source

complete -c tapotun -f
"""


def script(verbs: Sequence[Verb], own: Sequence[Argument]) -> str:
    """The whole script. ``own``: the options before a subcommand."""
    run = verbs[0]  # the default subcommand
    names = " ".join(verb.name for verb in verbs)
    none_yet = f"not __fish_seen_subcommand_from {names}"
    lines = [_line(none_yet, "-a", _quote(verb.name), "-d", _quote(verb.help)) for verb in verbs]
    flags = {flag for option in run.options for flag in option.flags}
    lines += _options(none_yet, [*run.options, *(option for option in own if not flags & set(option.flags))])
    lines.append(_line(none_yet, "-F"))
    for verb in verbs:
        seen = f"__fish_seen_subcommand_from {verb.name}"
        lines += _options(seen, verb.options)
        for argument in dict.fromkeys(positional._replace(nargs=None, help="") for positional in verb.positionals):
            if value := _value(argument):
                lines.append(_line(seen, *value))
    return _HEAD + "\n".join([*lines, ""])


def _options(condition: str, options: Sequence[Argument]) -> Iterator[str]:
    for option in options:
        words = [word for flag in option.flags for word in _flag(flag)]
        if option.metavar and option.nargs != "?":
            words += ["-r", *(_value(option) or ("-f",))]
        yield _line(condition, *words, "-d", _quote(option.help))


def _flag(flag: str) -> tuple[str, str]:
    return ("-l", flag[2:]) if flag.startswith("--") else ("-s", flag[1:])


def _value(argument: Argument) -> tuple[str, ...]:
    if argument.choices:
        return ("-f", "-a", _quote(" ".join(argument.choices)))
    if argument.kind == "file":
        return ("-F",)
    return ("-f", "-a", _quote(f"(tapotun completion {argument.kind} 2>/dev/null)")) if argument.kind else ()


def _line(condition: str, *words: str) -> str:
    return " ".join(["complete -c tapotun -n", _quote(condition), *words])


def _quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
