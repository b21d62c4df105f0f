"""A config file to a `Config`, or to everything that is wrong with it.

Blocking: reads the file and those that it names. Untrusted input: whatever the file holds, nothing
but `InvalidConfig` is raised.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from . import files
from .client_entry import read_client
from .common import LoadContext
from .decode import read_object, specs
from .diagnostics import MASK, Finding, Findings, InvalidConfig, item, show
from .jsontext import JsonObject, JsonProblem, parse, positions, to_text
from .model import Config, InterfaceConfig, TlsValidator
from .process_entry import is_raw_token, read_admin, read_log, warn_update
from .server_entry import read_server
from .structs import RawClient, RawInterface, RawRoot, RawServer

_FILE_BYTES: Final = 64 * 1024 * 1024  # a million routes; above, it is the wrong file


def load(path: str | os.PathLike[str], tls_validator: TlsValidator | None = None) -> Config:
    """The config, with its warnings. Raises InvalidConfig, which carries every finding."""
    config, findings = check(path, tls_validator)
    if config is None:
        raise InvalidConfig(os.fspath(path), findings)
    return config


def check(
    path: str | os.PathLike[str], tls_validator: TlsValidator | None = None
) -> tuple[Config | None, list[Finding]]:
    """The config, or None if there are errors, and all findings in the order of the file.

    ``tls_validator`` looks into the files of a client's TLS options (`host.tls_files.judge_files`); without it they
    only have to be there. Never raises for what is in the file or in its way.
    """
    file = os.fspath(path)
    try:
        content = files.read(file, _FILE_BYTES)
    except files.Unreadable as exc:
        return None, [Finding("error", "", "", f"cannot be read: {exc}", exc.remedy or "name a config file")]
    return check_content(content.data, file, content.public_mode, tls_validator)


def check_content(
    data: bytes, file: str, public_mode: int | None = None, tls_validator: TlsValidator | None = None
) -> tuple[Config | None, list[Finding]]:
    """`check` for what a file holds or will hold. ``public_mode`` is its permission bits if every user may read
    it; files that the config names are looked for beside ``file``."""
    try:
        text = to_text(data)
        if not text.strip():
            return None, [Finding("error", "", "", "is empty", "write a list of interface definitions, [{...}]")]
        root = parse(text)
    except JsonProblem as exc:
        return None, [Finding("error", "", "", exc.problem, exc.remedy, exc.line, exc.column)]
    findings = Findings()
    config = _read_root(root, LoadContext(file, findings, tls_validator))
    if public_mode is not None:
        _warn_public(root, file, public_mode, findings)
    found = _placed(findings.found, text)
    if any(finding.severity == "error" for finding in found):
        return None, found
    return replace(config, warnings=tuple(finding.text(file) for finding in found)), found


def _read_root(root: object, reading: LoadContext) -> Config:
    """Complete only if no errors were reported."""
    if isinstance(root, list):
        return Config(_read_entries("", [(item("", i), value) for i, value in enumerate(root)], reading))
    if not isinstance(root, JsonObject) or _is_entry(root):
        shown = MASK if isinstance(root, str) else show(root)
        reading.findings.error("", shown, "is not a list", "write a list of interface definitions, [{...}]")
        return Config(())
    node = read_object(root, RawRoot, "", reading.findings)
    assert node is not None
    interfaces: tuple[InterfaceConfig, ...] = ()
    if isinstance(root.get("interfaces"), list):
        interfaces = _read_entries(node.at("interfaces"), node.values("interfaces"), reading)
    warn_update(node, reading)
    return Config(interfaces, admin=read_admin(node, interfaces, reading), log=read_log(node))


def _is_entry(root: JsonObject) -> bool:
    """Somebody wrote one interface definition without the list around it."""
    of_entries = {**specs(RawServer), **specs(RawClient)}
    return root.keys().isdisjoint(specs(RawRoot)) and not root.keys().isdisjoint(of_entries)


def _read_entries(path: str, entries: list[tuple[str, object]], reading: LoadContext) -> tuple[InterfaceConfig, ...]:
    if not entries:
        reading.findings.error(path, "[]", "has nothing to run", "write at least one interface definition")
    read = [_read_entry(value, place, reading) for place, value in entries]
    reading.claims.finish()
    return tuple(interface for interface in read if interface is not None)


def _read_entry(value: object, path: str, reading: LoadContext) -> InterfaceConfig | None:
    """None only if errors were reported."""
    given = value if isinstance(value, dict) else {}
    is_server = "port" in given or "net" in given
    is_client = "server" in given
    if is_server and not is_client:
        node = read_object(value, RawServer, path, reading.findings)
        return None if node is None else read_server(node, reading)
    if is_client and not is_server:
        node = read_object(value, RawClient, path, reading.findings)
        return None if node is None else read_client(node, reading)
    if is_server:
        reading.findings.error(
            path,
            "",
            'has fields of a server ("port", "net") and of a client ("server")',
            "split it into two definitions",
        )
    elif isinstance(value, dict):
        reading.findings.error(
            path,
            "",
            "is neither a server nor a client",
            'add "port" and "net" to make it a server, or "server" to make it a client',
        )
    # Of what kind it is nobody knows; what both kinds have can be checked all the same.
    either = {**specs(RawServer), **specs(RawClient)}
    node = read_object(value, RawInterface, path, reading.findings, tolerated=either)
    if node is not None:
        reading.name(node)
        reading.mark(node)
    return None


def _warn_public(root: object, file: str, mode: int, findings: Findings) -> None:
    """One warning if the file holds a raw token. Other users may read hashes, not tokens."""
    path = next(_raw_tokens(root), None)
    if path is not None:
        findings.warning(
            path,
            MASK,
            f"stands in a file that every user of this machine can read (mode {mode:04o})",
            f"run chmod 600 {shlex.quote(file)}",
        )


def _raw_tokens(root: object) -> Iterator[str]:
    """The paths of what is, or was meant to be, a raw token."""
    entries, base = (root.get("interfaces"), "interfaces") if isinstance(root, dict) else (root, "")
    for i, value in enumerate(entries if isinstance(entries, list) else ()):
        if isinstance(value, dict) and "server" in value and "token" in value:
            yield f"{item(base, i)}.token"
    admin = root.get("admin") if isinstance(root, dict) else None
    if isinstance(admin, dict) and is_raw_token(admin.get("token")):
        yield "admin.token"


def _placed(found: list[Finding], text: str) -> list[Finding]:
    """The findings with line and column, in the order of the file. What is missing is placed where
    the object that lacks it begins."""
    if not found:
        return found
    places = positions(text)
    placed: list[Finding] = []
    for finding in found:
        path = finding.path
        while path and path not in places:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        line, column = places[path] if path else (None, None)
        placed.append(replace(finding, line=line, column=column))
    return sorted(placed, key=lambda f: (f.line or 0, f.column or 0))
