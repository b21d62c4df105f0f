"""The completion for zsh: a function `_tapotun`, for a directory in $fpath or to be sourced."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Final

from .running import KINDS
from .usage import Argument, Verb

_SCRIPT: Final = r"""#compdef tapotun
# Completion of tapotun for zsh, made by `tapotun completion zsh`.
# In ~/.zshrc, after compinit: source <(tapotun completion zsh)

_tapotun_asked() { # options of compadd that _arguments puts first, then kinds of names of running processes
    local kind
    local -a names
    for kind in ${@:#-*}; do
        [[ $kind == (interfaces|clients|processes) ]] && names+=(${(f)"$(tapotun completion $kind 2>/dev/null)"})
    done
    compadd -a names
}

_tapotun_verbs() {
    local -a verbs
    verbs=(
@VERBS@
    )
    _describe -t verbs verb verbs
    _files
}

_tapotun() {
    local at verb
    for ((at = 2; at < CURRENT; at++)); do
        case $words[at] in
            @NAMES@)
                verb=$words[at]
                shift $((at - 1)) words
                ((CURRENT -= at - 1))
                break
                ;;
        esac
    done
    case $verb in
@ARGUMENTS@
    esac
}

if [[ $funcstack[1] == _tapotun ]]; then
    _tapotun "$@"
else
    compdef _tapotun tapotun
fi
"""


def script(verbs: Sequence[Verb], own: Sequence[Argument]) -> str:
    """The whole script. ``own``: the options before a subcommand."""
    run = verbs[0]  # the default subcommand
    arguments = [f"        {verb.name}) _arguments {_specs(verb)} ;;" for verb in verbs]
    flags = {flag for option in run.options for flag in option.flags}
    bare = [*run.options, *(option for option in own if not flags & set(option.flags))]
    specs = " ".join(shlex.quote(spec) for option in bare for spec in _option(option))
    arguments.append(f"        '') _arguments {specs} '1:verb or FILE:_tapotun_verbs' ;;")
    return (
        _SCRIPT.replace("@VERBS@", "\n".join(f"        {shlex.quote(f'{verb.name}:{verb.help}')}" for verb in verbs))
        .replace("@NAMES@", "|".join(verb.name for verb in verbs))
        .replace("@ARGUMENTS@", "\n".join(arguments))
    )


def _specs(verb: Verb) -> str:
    specs = [spec for option in verb.options for spec in _option(option)]
    for number, argument in enumerate(verb.positionals, 1):
        place = "*" if argument.nargs == "*" else f"{number}"
        completed = _complete(argument)
        if argument.nargs == "?" and argument.kind in KINDS:  # it is optional, so this word may be the next argument
            completed = " ".join([completed, *(later.kind for later in verb.positionals[number:])])
        specs.append(f"{place}:{argument.metavar}:{completed}")
    return " ".join(map(shlex.quote, specs))


def _option(option: Argument) -> Iterator[str]:
    text = option.help.replace("\\", r"\\").replace("]", r"\]").replace(":", r"\:")
    for flag in option.flags:
        others = " ".join(option.flags)
        if not option.metavar:
            yield f"({others}){flag}[{text}]"
        else:
            maybe = ":" if option.nargs == "?" else ""
            joint = "=" if flag.startswith("--") else "+"
            yield f"({others}){flag}{joint}[{text}]{maybe}:{option.metavar}:{_complete(option)}"


def _complete(argument: Argument) -> str:
    if argument.choices:
        return f"({' '.join(argument.choices)})"
    if argument.kind == "file":
        return "_files"
    return f"_tapotun_asked {argument.kind}" if argument.kind else "()"
