"""The subcommands and their options, read from the argparse parser, so that completions are never out of date."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

# The kind of a value, by its metavar. Interfaces and clients are names that running processes know.
_KINDS: Final = {"FILE": "file", "F": "file", "URL|FILE": "file", "INTERFACE": "interfaces", "CLIENT": "clients"}


class Argument(NamedTuple):
    """An option, or a positional argument (which has no flags)."""

    flags: tuple[str, ...]
    metavar: str  # the name of its value; empty: it takes no value
    nargs: str | int | None  # as in argparse
    choices: tuple[str, ...]
    help: str
    kind: str
    """The kind of its value: ``file``, ``interfaces``, ``clients``, ``processes``; empty: a choice, or anything."""


class Verb(NamedTuple):
    """One subcommand."""

    name: str
    help: str
    description: str
    epilog: str
    options: tuple[Argument, ...]
    positionals: tuple[Argument, ...]
    usage: str


def verbs(parser: argparse.ArgumentParser) -> tuple[Verb, ...]:
    """Every subcommand, in the parser's order."""
    group = _group(parser)
    helps = {action.dest: action.help or "" for action in group._choices_actions}
    return tuple(_verb(name, helps[name], verb) for name, verb in group.choices.items())


def verb_parsers(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """Return the parser of every subcommand, by its name."""
    return _group(parser).choices


def _group(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    (group,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return group


def own_options(parser: argparse.ArgumentParser) -> tuple[Argument, ...]:
    """The options without a subcommand, such as --version."""
    return tuple(argument for argument in _arguments(parser) if argument.flags)


def _verb(name: str, text: str, parser: argparse.ArgumentParser) -> Verb:
    arguments = tuple(_arguments(parser))
    if any(argument.kind == "file" and not argument.flags for argument in arguments):
        # This subcommand asks no running process: its --name is a new name.
        arguments = tuple(each._replace(kind="") if each.kind == "processes" else each for each in arguments)
    return Verb(
        name,
        text,
        parser.description or "",
        parser.epilog or "",
        tuple(argument for argument in arguments if argument.flags),
        tuple(argument for argument in arguments if not argument.flags),
        parser.format_usage().removeprefix("usage: ").strip(),
    )


def _arguments(parser: argparse.ArgumentParser) -> Iterator[Argument]:
    for action in parser._actions:
        flags = tuple(action.option_strings)
        choices = tuple(map(str, action.choices or ()))
        metavar = ""
        if action.nargs != 0:
            metavar = str(action.metavar) if action.metavar else "{" + ",".join(choices) + "}"
        kind = "processes" if "--name" in flags else _KINDS.get(metavar, "")
        yield Argument(flags, metavar, action.nargs, choices, action.help or "", kind)
