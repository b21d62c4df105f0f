"""docs/windows.md names everything that a second operating system would have to provide, and nothing else."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from .test_imports import MODULES, PACKAGE, ROOT, covers, module_name, own_imports, package_of

PAGE: Final = (ROOT / "docs" / "windows.md").read_text(encoding="utf-8")
PROTOCOLS: Final = PACKAGE / "host" / "interfaces.py"
CHECK_S: Final = 240.0  # a quarter of a minute on two busy cores


def rows(section: str) -> list[list[str]]:
    """The cells of the table in a section, without its head."""
    lines = [
        line for line in PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0].splitlines() if line[:1] == "|"
    ]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def names(cell: str) -> list[str]:
    """What is in backquotes there."""
    return re.findall(r"`([\w.]+)`", cell)


@pytest.fixture(scope="module")
def linux_only() -> set[str]:
    """The modules that name something which Python has on Linux and not on Windows, as mypy finds them."""
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--platform",
        "win32",
        "--cache-dir",
        "build/mypy-win32",
        "-p",
        "tapotun_trio",
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=CHECK_S)
    assert done.returncode == 1, done.stdout + done.stderr
    found = re.findall(r"(?m)^tapotun_trio/([\w/]+)\.py:\d+: error: .*\[(?:attr|name)-defined\]$", done.stdout)
    return {name.replace("/", ".") for name in found}


def test_linux_outside_of_host(linux_only: set[str]) -> None:
    """A row may name a module, or a package for all that is in it."""
    listed = {name for row in rows("Linux outside of host") for name in names(row[0])}
    found = {name for name in linux_only if package_of(name) != "host"}
    missing = {name for name in found if not any(covers(entry, name) for entry in listed)}
    assert missing == set(), "docs/windows.md has no row for them"
    unused = {entry for entry in listed if not any(covers(entry, name) for name in found)}
    assert unused == set(), "docs/windows.md has a row too many"


def test_what_is_imported_by_name(linux_only: set[str]) -> None:
    """Every module of host that another package imports, and whether it is portable."""
    outside = [path for path in MODULES if package_of(module_name(path)) != "host"]
    imported = {name for path in outside for name in own_imports(path) if package_of(name) == "host"}
    imported -= {"host.interfaces"}
    table = {names(row[0])[0]: row[1] for row in rows("Imported by name")}
    assert imported - table.keys() == set(), "docs/windows.md has no row for them"
    assert table.keys() - imported == set(), "docs/windows.md has a row too many"
    portable = {name: "no" if name in linux_only else "yes" for name in imported}
    assert {name: is_so for name, is_so in portable.items() if table[name] != is_so} == {}


def test_every_method_of_a_protocol() -> None:
    """In the order of the page: a row in bold is a Protocol, those below it are its methods."""
    listed: dict[str, set[str]] = {}
    current: list[str] = []
    for row in rows("What the Protocols ask for"):
        if row[0].startswith("**"):
            current = names(row[0])
        else:
            for protocol in current:
                listed.setdefault(protocol, set()).update(names(row[0]))
    asked: dict[str, set[str]] = {}
    for node in ast.parse(PROTOCOLS.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Protocol" for base in node.bases):
            methods = (it for it in node.body if isinstance(it, ast.FunctionDef | ast.AsyncFunctionDef))
            asked[node.name] = {method.name for method in methods}
    lendable = asked["LendableQueue"] | asked["LendableDevice"]
    assert listed.pop("LendableQueue") == listed.pop("LendableDevice") == lendable
    del asked["LendableQueue"], asked["LendableDevice"]
    assert listed == asked


def test_the_tests_of_a_backend_are_there() -> None:
    files = re.findall(r"\]\(\.\./(tests/[\w/]+\.py)\)", PAGE)
    assert len(files) > 10
    assert [file for file in files if not Path(ROOT, file).exists()] == []


def test_something_is_found(linux_only: set[str]) -> None:
    """The tests above look at something."""
    assert {"host.tun", "host.net.sockets", "host.process.signals", "files"} <= linux_only
    assert not {"host.interfaces", "wire.frames", "server.server", "client.client", "datapath.tun_io"} & linux_only
