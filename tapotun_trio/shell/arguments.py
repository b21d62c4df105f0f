"""The subcommands that print something for other programs. Their modules are imported when they run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from .. import exit_codes


def add_printing_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], program: Callable[[], argparse.ArgumentParser]
) -> None:
    """Add these subcommands. ``program`` makes the whole parser, from which completions are generated."""
    text = "print the config's JSON Schema, for editors"
    verb = verbs.add_parser("schema", help=text, description=text, allow_abbrev=False)
    verb.set_defaults(verb=_schema)

    text = "print the launcher that takes back an update that does not start; docs/update.md says where it belongs"
    verb = verbs.add_parser("launcher", help=text, description=text, allow_abbrev=False)
    verb.set_defaults(verb=_launcher)

    text = "print the completion script of a shell"
    verb = verbs.add_parser("completion", help=text, description=text, allow_abbrev=False)
    what = ("bash", "zsh", "fish", "interfaces", "clients", "processes")
    text = "a shell; with the other words its script asks for the names of running processes, interfaces and clients"
    verb.add_argument("what", metavar="SHELL", choices=what, help=text)

    def completion(arguments: argparse.Namespace) -> int:
        from .verbs import completion

        return completion(arguments.what, program())

    verb.set_defaults(verb=completion)


def _schema(_: argparse.Namespace) -> int:
    from ..config.schema import schema

    print(json.dumps(schema(), indent=2))
    return exit_codes.OK


def _launcher(_: argparse.Namespace) -> int:
    from importlib.resources import files

    print(files("tapotun_trio.update").joinpath("launcher.py").read_text(encoding="utf-8"), end="")
    return exit_codes.OK
