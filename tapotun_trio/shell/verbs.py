"""Prints the output of `tapotun completion`."""

from __future__ import annotations

import argparse
from typing import Final

from .. import exit_codes
from . import bash, fish, zsh
from .running import names
from .usage import own_options, verbs

_SHELLS: Final = {"bash": bash.script, "zsh": zsh.script, "fish": fish.script}


def completion(what: str, parser: argparse.ArgumentParser) -> int:
    """Print a shell's script, or names for it. Returns the exit code."""
    if script := _SHELLS.get(what):
        print(script(verbs(parser), own_options(parser)), end="")
    else:
        for name in names(what):
            print(name)
    return exit_codes.OK
