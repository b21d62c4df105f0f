"""Who may import whom, as docs/architecture.md#who-may-import-whom says, and rules that can be read off the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = ROOT / "tapotun_trio"
MODULES: Final = sorted(PACKAGE.rglob("*.py"))

# What waits, measures time or touches the network. config reads files; that needs no more than `os`.
IMPURE: Final = {"trio", "socket", "ssl", "time", "asyncio", "threading", "select", "selectors", "subprocess", "signal"}
# What `tests/fakes.py` stands in for. Only `app` may have the real ones, whatever the table says.
REAL_ADAPTERS: Final = {"host.linux", "host.tun", "host.netlink.network", "host.netlink.monitor"}
MAX_LINES: Final = 800


def module_name(path: Path) -> str:
    """``tunnel.sender`` for tapotun_trio/datapath/sender.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@dataclass(frozen=True)
class Row:
    """One package, as the table of docs/architecture.md has it."""

    number: int  # from the top: a package imports only those above it
    allowed: tuple[str, ...]
    pure: bool


def read_table(text: str) -> dict[str, Row]:
    """Every package of the table, of both columns what is written there. Anything else in a cell is an error."""
    section = text.partition("\n## Who may import whom\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert lines[0].split("|")[1:-1] == [" package ", " what it is ", " may import ", " pure "], lines[0]
    table: dict[str, Row] = {}
    for number, line in enumerate(lines[2:]):
        packages, _, allowed, pure = (cell.strip() for cell in line.split("|")[1:-1])
        row = Row(number, tuple(_names(allowed)), {"yes": True, "": False}[pure])
        for package in _names(packages):
            assert package not in table, f"{package} has two rows"
            table[package] = row
    return table


def _names(cell: str) -> list[str]:
    names = [] if cell == "-" else [name.strip() for name in cell.split(",")]
    assert all(re.fullmatch(r"`[\w.]+`", name) for name in names), cell
    return [name.strip("`") for name in names]


TABLE: Final = read_table((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))


def package_of(module: str) -> str:
    return module.partition(".")[0]


def covers(entry: str, module: str) -> bool:
    """``host`` covers all of it, ``host.tls`` that module."""
    return module == entry or module.startswith(f"{entry}.")


def imports(path: Path) -> Iterator[str]:
    """Everything that a module imports, wherever it does: ``trio``, and for our own ``.wire.body``."""
    package = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.replace("tapotun_trio", "", 1) or ".__init__"
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                name = node.module or ""
                own = name.split(".")[0] == "tapotun_trio"
                yield "." + name.removeprefix("tapotun_trio").lstrip(".") if own else name
                continue
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            prefix = "".join(f".{part}" for part in base if part)
            for alias in node.names:
                # `from ..wire import control` imports a module, `from ..errors import PeerError` does not.
                inner = PACKAGE.joinpath(*filter(None, prefix.split(".")), alias.name)
                yield f"{prefix}.{alias.name}" if inner.with_suffix(".py").exists() else prefix or ".__init__"


def own_imports(path: Path) -> Iterator[str]:
    return (name.removeprefix(".") for name in imports(path) if name.startswith("."))


def violations(path: Path) -> Iterator[str]:
    module = module_name(path)
    row = TABLE[package_of(module)]
    for name in own_imports(path):
        if package_of(name) != package_of(module) and not any(covers(entry, name) for entry in row.allowed):
            yield f"{module} imports {name}, which its row of docs/architecture.md does not name"
        if name in REAL_ADAPTERS and package_of(module) not in ("host", "app"):
            yield f"{module} imports the real adapter {name}; only app does"
    for name in imports(path) if row.pure else ():
        if name.split(".")[0] in IMPURE:
            yield f"{module} imports {name}, and docs/architecture.md says that it is pure"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_what_its_row_names(path: Path) -> None:
    assert list(violations(path)) == []


def test_the_table_has_every_package_and_no_other() -> None:
    assert TABLE.keys() == {package_of(module_name(path)) for path in MODULES}


@pytest.mark.parametrize("package", TABLE)
def test_a_row_names_only_what_is_above_it(package: str) -> None:
    """So there is no cycle, and nothing imports upwards."""
    for entry in TABLE[package].allowed:
        assert TABLE[package_of(entry)].number < TABLE[package].number, f"{package} may import {entry}"


@pytest.mark.parametrize("package", TABLE)
def test_a_row_names_nothing_that_is_not_imported(package: str) -> None:
    """What stands in the table is true, and not merely permitted."""
    rows = [it for it in TABLE if TABLE[it] is TABLE[package]]
    used = {name for path in MODULES if package_of(module_name(path)) in rows for name in own_imports(path)}
    unused = [entry for entry in TABLE[package].allowed if not any(covers(entry, name) for name in used)]
    assert unused == []


def test_both_columns_are_read() -> None:
    """The tests above look at something: a wrong word in either column is found."""
    assert len(TABLE) > 15
    assert {"wire", "routing", "config", "status"} <= {package for package, row in TABLE.items() if row.pure}
    header = "\n## Who may import whom\n\n| package | what it is | may import | pure |\n|---|---|---|---|\n"
    table = read_table(header + "| `a`, `b` | x | - | yes |\n| `c` | x | `a`, `b.d` | |\n\n## Next\n")
    assert table == {"a": Row(0, (), pure=True), "b": Row(0, (), pure=True), "c": Row(1, ("a", "b.d"), pure=False)}
    assert covers("host", "host.tls")
    assert not covers("host.tls", "host.tls_files")
    for wrong in ("| `a` | x | all above | |\n", "| `a` | x | `b` | perhaps |\n"):
        with pytest.raises((AssertionError, KeyError)):
            read_table(header + wrong)


def test_imports_are_found() -> None:
    """The tests above look at something: what must be there is there."""
    found = {module_name(path): set(imports(path)) for path in MODULES}
    assert any("trio" in names for names in found.values())
    assert {".config.load", ".log", ".__init__"} <= found["cli"]
    assert any(name.startswith(".host.") for name in found["app"])
    assert len(MODULES) > 30


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_has_a_docstring_and_one_subject(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source)), "a file opens with its rules"
    assert source.count("\n") <= MAX_LINES


# Whatever takes bytes from the network says so: in its module's docstring, or in its own.
PARSERS: Final = [
    ("wire/body.py", None),
    ("wire/frames.py", None),
    ("wire/websocket.py", None),
    ("wire/tunconf.py", "decode"),
    ("wire/params.py", "decode"),
    ("wire/vnet.py", "validate_vnet_header"),
    ("wire/control.py", "echoed_clock"),
    ("wire/control.py", "bye_reason"),
    ("wire/control.py", "agree"),
    ("wire/control.py", "agent"),
    ("wire/control.py", "agent_payload"),
    ("wire/control.py", "session_id"),
    ("wire/control.py", "seen_number"),
    ("wire/control.py", "upload_number"),
    ("host/net/tls_records.py", None),
    ("http/websocket.py", "accept_head"),
    ("http/heads.py", None),
    ("http/connect.py", None),
    ("probe/identify.py", None),
    ("probe/path.py", "_describe"),
    ("config/urls.py", None),
    ("config/load.py", None),
    ("config/parsers.py", None),
    ("admin/browser.py", None),
    ("admin/answers.py", "decode"),
    ("admin/pages.py", "is_known"),
    ("admin/api.py", None),
    ("update/answers.py", None),
    ("update/bundle.py", None),
    ("update/fetch.py", None),
    ("update/trust.py", None),
]


@pytest.mark.parametrize(("file", "function"), PARSERS)
def test_a_parser_says_that_its_input_is_untrusted(file: str, function: str | None) -> None:
    module = ast.parse((PACKAGE / file).read_text())
    documented: list[ast.Module | ast.FunctionDef] = [module]
    documented += [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef) and node.name == function]
    assert any("untrusted input" in (ast.get_docstring(node) or "").lower() for node in documented)


# ------------------------------------------------------------------ the tests themselves

UNIT_TESTS: Final = sorted((ROOT / "tests" / "unit").glob("test_*.py"))
VIRTUAL_CLOCKS: Final = {"autojump_clock", "mock_clock"}
# Tests that import one of these run whole interfaces over the kernel's own sockets, for which no clock of ours is fast
# enough: they poll.
REAL_SOCKETS: Final = (
    "from .support",
    "from .hostile",
    "tests.basepeer",
    "from ..basepeer",
    "from ..planes",
    "from .tls_oracle",
)


def sleepers(tree: ast.AST) -> Iterator[str]:
    """Test functions that sleep on a real clock: directly, and without a fixture for a virtual one."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.name.startswith("test_"):
            continue
        if VIRTUAL_CLOCKS & {argument.arg for argument in node.args.args}:
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.Call) and ast.unparse(inner.func) in ("trio.sleep", "time.sleep", "asyncio.sleep"):
                yield node.name


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_no_unit_test_sleeps_on_the_real_clock(path: Path) -> None:
    source = path.read_text()
    if not any(name in source for name in REAL_SOCKETS):
        assert list(sleepers(ast.parse(source))) == []


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_module_asks_where_it_lies(path: Path) -> None:
    """In tapotun.pyz it lies in no directory: what is data is read with importlib.resources."""
    names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
    assert not names & {"__file__", "__path__"}
