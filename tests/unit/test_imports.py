"""DESIGN's rules about who may import whom, and STYLE's that can be read off the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = ROOT / "tapotun_trio"
MODULES: Final = sorted(PACKAGE.rglob("*.py"))

# From the bottom up. A module imports from its own layer and from those below it.
LAYERS: Final = (
    {"errors", "exits", "lazily", "log", "text", "__init__"},
    {"wire"},
    {"routing"},
    {"config"},
    {"status"},
    {"host"},
    {"http"},
    {"tunnel"},
    {"control", "doctor", "probe"},
    {"admin"},
    {"update"},
    {"readiness", "reload", "shell"},
    {"app"},
    {"cli"},
    {"__main__"},
)
PURE: Final = ("wire", "routing", "config", "status")
# What waits, measures time or touches the network. config reads files; that needs no more than `os`.
IMPURE: Final = {"trio", "socket", "ssl", "time", "asyncio", "threading", "select", "selectors", "subprocess", "signal"}
REAL_ADAPTERS: Final = {"host.system", "host.tun", "host.netlink"}
MAX_LINES: Final = 800


def module_name(path: Path) -> str:
    """``tunnel.sender`` for tapotun_trio/tunnel/sender.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def layer(module: str) -> int:
    top = module.partition(".")[0]
    found = [number for number, names in enumerate(LAYERS) if top in names]
    assert found, f"{module} has no layer: give it its place in DESIGN and here"
    return found[0]


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
    for name in own_imports(path):
        if layer(name) > layer(module):
            yield f"{module} imports {name}, which is above it"
        if name in REAL_ADAPTERS and not module.startswith("host.") and module != "app":
            yield f"{module} imports the real adapter {name}; only app does"
    if module.startswith(PURE):
        for name in imports(path):
            if name.split(".")[0] in IMPURE:
                yield f"{module} imports {name}; {', '.join(PURE)} are pure"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    assert list(violations(path)) == []


def test_imports_are_found() -> None:
    """The test above looks at something: what must be there is there."""
    assert set(imports(PACKAGE / "tunnel" / "sender.py")) >= {"trio", ".http.writer", ".wire.control", ".tunnel.outbox"}
    assert set(own_imports(PACKAGE / "cli.py")) >= {"__init__", "app", "config.load", "log"}
    assert "host.system" in own_imports(PACKAGE / "app.py")
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
    ("wire/vnet.py", "base_peer_accepts"),
    ("wire/control.py", "echoed_clock"),
    ("wire/control.py", "bye_reason"),
    ("wire/control.py", "agree"),
    ("wire/control.py", "agent"),
    ("wire/control.py", "agent_payload"),
    ("wire/control.py", "session_id"),
    ("wire/control.py", "seen_number"),
    ("wire/control.py", "upload_number"),
    ("http/websocket.py", "accept_head"),
    ("http/heads.py", None),
    ("http/connect.py", None),
    ("probe/identify.py", None),
    ("probe/path.py", "_describe"),
    ("config/proxy.py", None),
    ("config/load.py", None),
    ("config/process_entry.py", None),
    ("admin/browser.py", None),
    ("admin/answers.py", "decode"),
    ("admin/pages.py", "is_known"),
    ("admin/site.py", None),
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
REAL_SOCKETS: Final = ("from .support", "from .hostile", "tests.basepeer", "from ..basepeer")


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
