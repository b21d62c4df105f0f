"""The man pages: complete, since they are made of the program, and well-formed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tapotun_trio import cli, exit_codes
from tapotun_trio.config.structs import NAMES
from tapotun_trio.config.typecheck import field_specs
from tapotun_trio.shell.usage import verbs
from tests.harness import ROOT

from .conftest import make

pytestmark = pytest.mark.netns  # the tools come with `make test`

PAGES: Final = ("tapotun.8", "tapotun.json.5")


@pytest.fixture(scope="module")
def pages() -> Path:
    make("man")
    return ROOT / "build" / "man"


def shown(page: Path) -> str:
    """As `man` shows it, without its line breaks inside words."""
    environment = {**os.environ, "MANWIDTH": "1000", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    argv: list[str | Path] = ["man", "--no-hyphenation", "--no-justification", "-P", "cat", "-l", page]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, env=environment)
    assert done.stderr == ""
    return re.sub("\x1b\\[[0-9;]*m|.\b", "", done.stdout)


@pytest.mark.parametrize("page", PAGES)
def test_groff_and_mandoc_have_nothing_to_say(pages: Path, page: str) -> None:
    argv: list[str | Path] = ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", pages / page]
    done = subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert done.stderr == ""
    done = subprocess.run(["mandoc", "-Tlint", "-Wall", pages / page], check=False, capture_output=True, text=True)
    assert done.stdout == ""


def test_every_verb_option_and_exit_code_is_there(pages: Path) -> None:
    text = shown(pages / "tapotun.8")
    sections = re.split(r"(?m)^   (?=\S)", text)
    assert len(verbs(cli.build_parser())) > 10
    for verb in verbs(cli.build_parser()):
        (section,) = [it for it in sections if it.split(maxsplit=1)[0] == verb.name]
        for argument in (*verb.options, *verb.positionals):
            if "--help" not in argument.flags:
                for word in (*argument.flags, argument.metavar):
                    assert word in section, f"{verb.name}: {word}"
    codes = text.partition("\nEXIT STATUS\n")[2].partition("\nSIGNALS\n")[0]
    numbers = [value for name, value in vars(exit_codes).items() if name.isupper()]
    assert len(numbers) > 3
    assert re.findall(r"(?m)^       (\d+) ", codes) == [str(it) for it in numbers]


def prefix(described: str) -> str:
    """What messages about the config write before the fields of an object within another: ``tls.``."""
    within = re.search(r'"(\w+)"', described)
    if within is None:
        return ""
    return f"{within[1]}[]." if described.startswith("an entry") else f"{within[1]}."


def test_every_field_of_the_config_is_there(pages: Path) -> None:
    text = shown(pages / "tapotun.json.5")
    for struct in NAMES:
        names = set(field_specs(struct))
        sections = text.split("\n\n")
        assert names, struct
        for name in (prefix(NAMES[struct]) + name for name in names):
            assert [it for it in sections if re.match(rf"       {re.escape(name)}\b(?![\w.])", it)], name
    headings = re.findall(r"(?m)^(?:THE|A|AN) .+$", text)
    assert len(headings) == len(NAMES)
    assert not re.search(r"\]\(|\*\*|`", text), "Markdown is left over"


def test_names_of_fields_keep_their_case(pages: Path) -> None:
    """`tls.ca_file` at the start of a sentence; an option says in words what it is for."""
    text = shown(pages / "tapotun.8")
    assert "Tls." not in text
    for option in ("--ca-file F", "--cert-file F", "--key-file F", "--server-name NAME"):
        (described,) = re.findall(rf"(?m)^       {option}\s+(.+)$", text)
        assert re.fullmatch(r"(The|Certificates) .+: tls\.\w+\.", described), described
