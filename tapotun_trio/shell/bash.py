"""The completion for bash 4 and newer. It does not need the package bash-completion."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Final

from .usage import Argument, Verb

_SCRIPT: Final = r"""# Completion of tapotun for bash, made by `tapotun completion bash`.
# In ~/.bashrc: source <(tapotun completion bash)

# Offer the words that begin with what is typed.
_tapotun_words() {
    local word
    for word; do
        [[ $word == "$cur"* ]] && COMPREPLY+=("$word")
    done
    return 0
}

_tapotun_asked() { # offer names of this kind from running processes; quoted, since they may hold anything
    local names at
    mapfile -t names < <(tapotun completion "$1" 2>/dev/null)
    for at in "${!names[@]}"; do
        printf -v "names[at]" %q "${names[at]}"
    done
    _tapotun_words "${names[@]}"
}

_tapotun_files() {
    compopt -o default
}

_tapotun() {
    local cur=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} verb='' at
    COMPREPLY=()
    if [[ $cur == = ]]; then
        cur=''
    elif [[ $before == = ]]; then
        before=${COMP_WORDS[COMP_CWORD-2]}
    fi
    for ((at = 1; at < COMP_CWORD; at++)); do
        case ${COMP_WORDS[at]} in
            @VERBS@) verb=${COMP_WORDS[at]}; break ;;
        esac
    done
    case $verb:$before in
@VALUES@
    esac
    case $verb:$cur in
@OPTIONS@
    esac
    case $verb in
@POSITIONALS@
    esac
}

complete -F _tapotun tapotun
"""


def script(verbs: Sequence[Verb], own: Sequence[Argument]) -> str:
    """The whole script. ``own``: the options before a subcommand."""
    run = verbs[0]  # the default subcommand
    values: list[str] = []
    options: list[str] = []
    positionals: list[str] = []
    for verb, label in [*((verb, verb.name) for verb in verbs), (run, "")]:
        values += [
            f"        {'|'.join(f'{label}:{flag}' for flag in option.flags)}) {_complete(option)}; return ;;"
            for option in verb.options
            if option.metavar and option.nargs != "?"  # an optional value is not offered
        ]
        flags = [flag for option in verb.options for flag in option.flags]
        if not label:
            flags += [flag for option in own for flag in option.flags if flag not in flags]
        options.append(f"        {label}:-*) _tapotun_words {_words(flags)}; return ;;")
        if label and (completed := "; ".join(dict.fromkeys(filter(None, map(_complete, verb.positionals))))):
            positionals.append(f"        {label}) {completed} ;;")
    positionals.append(f"        '') _tapotun_words {_words(verb.name for verb in verbs)}; _tapotun_files ;;")
    return (
        _SCRIPT.replace("@VERBS@", "|".join(verb.name for verb in verbs))
        .replace("@VALUES@", "\n".join(values))
        .replace("@OPTIONS@", "\n".join(options))
        .replace("@POSITIONALS@", "\n".join(positionals))
    )


def _complete(argument: Argument) -> str:
    if argument.choices:
        return f"_tapotun_words {_words(argument.choices)}"
    if argument.kind == "file":
        return "_tapotun_files"
    return f"_tapotun_asked {argument.kind}" if argument.kind else ":"


def _words(words: Iterable[str]) -> str:
    return " ".join(map(shlex.quote, words))
