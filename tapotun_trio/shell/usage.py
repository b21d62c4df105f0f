"""The verbs and their options, read off an argparse parser, so that what is made of them is never out of date."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Final, NamedTuple

# What a value is, by how the usage calls it. INTERFACE, CLIENT and PROCESS are names that running processes know.
_KINDS: Final = {"FILE": "file", "F": "file", "INTERFACE": "interfaces", "CLIENT": "clients"}


class Argument(NamedTuple):
    """An option, or a positional argument (which has no flags)."""

    flags: tuple[str, ...]
    metavar: str  # of its value; empty: it has none
    nargs: str | int | None  # as argparse has it
    choices: tuple[str, ...]
    help: str
    kind: str
    """What its value is: ``file``, ``interfaces``, ``clients``, ``processes``; empty: a choice, or anything."""


class Verb(NamedTuple):
    """One verb."""

    name: str
    help: str
    description: str
    epilog: str
    options: tuple[Argument, ...]
    positionals: tuple[Argument, ...]
    usage: str


def verbs(parser: argparse.ArgumentParser) -> tuple[Verb, ...]:
    """Every verb of the program's parser, in its order."""
    (group,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    helps = {action.dest: action.help or "" for action in group._choices_actions}
    return tuple(_verb(name, helps[name], verb) for name, verb in group.choices.items())


def own_options(parser: argparse.ArgumentParser) -> tuple[Argument, ...]:
    """Options that stand in place of a verb."""
    return tuple(it for it in _arguments(parser) if it.flags)


def _verb(name: str, text: str, parser: argparse.ArgumentParser) -> Verb:
    arguments = tuple(_arguments(parser))
    if any(it.kind == "file" and not it.flags for it in arguments):
        # It starts a process, or knows none: its --name is a new one.
        arguments = tuple(it._replace(kind="") if it.kind == "processes" else it for it in arguments)
    return Verb(
        name,
        text,
        parser.description or "",
        parser.epilog or "",
        tuple(it for it in arguments if it.flags),
        tuple(it for it in arguments if not it.flags),
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
