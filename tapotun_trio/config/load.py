"""Loads a config file. The result is a `Config`, or findings about everything that is wrong with the file.

Blocking: reads the file and the files that it names. Untrusted input; raises `InvalidConfig` only, for any content.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from ..errors import shortage_of
from ..files import UnreadableFile, read_file
from .context import LoadContext
from .diagnostics import MASK, Finding, Findings, InvalidConfig, item, show
from .jsontext import JsonObject, JsonProblem, parse, positions, to_text
from .model import Config, InterfaceConfig, TlsValidator
from .parsers import is_raw_token, parse_user_name
from .placeholders import warn_placeholders
from .structs import RawClient, RawInterface, RawRoot, RawServer
from .typecheck import check_object, field_specs
from .validate import validate_mark, validate_name, validate_server
from .validate_client import validate_client
from .validate_process import validate_admin, validate_log, validate_plane
from .validate_update import validate_update

_FILE_BYTES: Final = 64 * 1024 * 1024  # room for a million routes; a larger file is the wrong one


def load(path: str | os.PathLike[str], tls_validator: TlsValidator | None = None) -> Config:
    """The config, with its warnings. Raises InvalidConfig, which has all findings."""
    config, findings = check(path, tls_validator)
    if config is None:
        raise InvalidConfig(os.fspath(path), findings)
    return config


def check(
    path: str | os.PathLike[str], tls_validator: TlsValidator | None = None
) -> tuple[Config | None, list[Finding]]:
    """The config, or None if there are errors; and all findings in the order of the file.

    ``tls_validator`` loads the files of a client's TLS options (`host.net.tls_files` has one). Without it they only
    have to be readable. Never raises for the content of a file, nor for a file that cannot be read.
    """
    file = os.fspath(path)
    try:
        content = read_file(file, _FILE_BYTES)
        return check_content(content.data, file, content.public_mode, tls_validator)
    except UnreadableFile as exc:
        return None, [Finding("error", "", "", f"cannot be read: {exc}", exc.remedy or "name a config file")]
    except MemoryError as exc:
        lack = shortage_of(exc, "")
        assert lack is not None, "a MemoryError is a shortage"
        return None, [Finding("error", "", "", f"cannot be read: {lack.lack}", lack.remedy)]


def check_content(
    data: bytes, file: str, public_mode: int | None = None, tls_validator: TlsValidator | None = None
) -> tuple[Config | None, list[Finding]]:
    """The same as `check` for the content of a file, which need not exist yet.

    ``public_mode`` is its permission bits if every user of the machine may read it. Relative names of other files start
    at the directory of ``file``.
    """
    try:
        text = to_text(data)
        if not text.strip():
            return None, [Finding("error", "", "", "is empty", "write a list of interface definitions, [{...}]")]
        root = parse(text)
    except JsonProblem as exc:
        return None, [Finding("error", "", "", exc.problem, exc.remedy, exc.line, exc.column)]
    findings = Findings()
    context = LoadContext(file, findings, tls_validator)
    config = _load_root(root, context)
    if public_mode is not None:
        _warn_public(root, file, public_mode, findings)
    warn_placeholders(root, findings)
    located = _located(findings.found, text)
    if any(finding.severity == "error" for finding in located):
        return None, located
    warnings = tuple(finding.text(file) for finding in located)
    return replace(config, warnings=warnings, files=(os.path.abspath(file), *context.files)), located


def _load_root(root: object, context: LoadContext) -> Config:
    """The config; complete only if no errors were reported."""
    if isinstance(root, list):
        return Config(_load_entries("", [(item("", index), value) for index, value in enumerate(root)], context))
    if not isinstance(root, JsonObject) or _is_single_entry(root):
        shown = MASK if isinstance(root, str) else show(root)
        context.findings.error("", shown, "is not a list", "write a list of interface definitions, [{...}]")
        return Config(())
    node = check_object(root, RawRoot, "", context.findings)
    assert node is not None
    interfaces: tuple[InterfaceConfig, ...] = ()
    if isinstance(root.get("interfaces"), list):
        interfaces = _load_entries(node.at("interfaces"), node.values("interfaces"), context)
    return Config(
        interfaces,
        admin=validate_admin(node, interfaces, context),
        log=validate_log(node),
        user=context.parse_field(node, "user", parse_user_name),
        plane=validate_plane(node),
        update=validate_update(node, context),
    )


def _is_single_entry(root: JsonObject) -> bool:
    """Whether the root is one interface definition without the list around it."""
    entry_fields = {**field_specs(RawServer), **field_specs(RawClient)}
    return root.keys().isdisjoint(field_specs(RawRoot)) and not root.keys().isdisjoint(entry_fields)


def _load_entries(path: str, entries: list[tuple[str, object]], context: LoadContext) -> tuple[InterfaceConfig, ...]:
    if not entries:
        context.findings.error(path, "[]", "has nothing to run", "write at least one interface definition")
    interfaces = [_load_entry(value, entry_path, context) for entry_path, value in entries]
    context.conflicts.finish()
    return tuple(interface for interface in interfaces if interface is not None)


def _load_entry(value: object, path: str, context: LoadContext) -> InterfaceConfig | None:
    """One interface definition. None only if errors were reported."""
    given = value if isinstance(value, dict) else {}
    is_server = "port" in given or "net" in given or ("listen" in given and "server" not in given)
    is_client = "server" in given
    if is_server and not is_client:
        node = check_object(value, RawServer, path, context.findings)
        return None if node is None else validate_server(node, context)
    if is_client and not is_server:
        node = check_object(value, RawClient, path, context.findings)
        return None if node is None else validate_client(node, context)
    _check_unknown_kind(value, path, context, has_both=is_server)
    return None


def _check_unknown_kind(value: object, path: str, context: LoadContext, *, has_both: bool) -> None:
    """Report an entry that is neither a server nor a client, or both, and check the fields that both kinds have."""
    if has_both:
        context.findings.error(
            path,
            "",
            'has fields of a server ("port", "net") and of a client ("server")',
            "split it into two definitions",
        )
    elif isinstance(value, dict):
        context.findings.error(
            path,
            "",
            "is neither a server nor a client",
            'add "port" and "net" to make it a server, or "server" to make it a client',
        )
    entry_fields = {**field_specs(RawServer), **field_specs(RawClient)}
    node = check_object(value, RawInterface, path, context.findings, ignored=entry_fields)
    if node is not None:
        validate_name(node, context)
        validate_mark(node, context)


def _warn_public(root: object, file: str, mode: int, findings: Findings) -> None:
    """Warn once if the file has a secret and every user may read it. Hashes are not secret."""
    path = next(_raw_secrets(root), None)
    if path is not None:
        findings.warning(
            path,
            MASK,
            f"is in a file that every user of this machine can read (mode {mode:04o})",
            f"run chmod o-rwx {shlex.quote(file)}",
        )


def _raw_secrets(root: object) -> Iterator[str]:
    """Yield the paths of values that are, or were meant to be, raw tokens, or that contain a login or another
    secret."""
    entries, base = (root.get("interfaces"), "interfaces") if isinstance(root, dict) else (root, "")
    for i, value in enumerate(entries if isinstance(entries, list) else ()):
        if isinstance(value, dict) and "server" in value and "token" in value:
            yield f"{item(base, i)}.token"
        if isinstance(value, dict) and "server" in value:
            if isinstance(value.get("headers"), dict) and value["headers"]:
                yield f"{item(base, i)}.headers"
            for name in ("server", "proxy"):
                if isinstance(value.get(name), str) and "@" in value[name]:  # a login
                    yield f"{item(base, i)}.{name}"
    admin = root.get("admin") if isinstance(root, dict) else None
    update = root.get("update") if isinstance(root, dict) else None
    if isinstance(update, dict):
        for name in ("url", "proxy"):
            if isinstance(update.get(name), str) and "@" in update[name]:  # a login
                yield f"update.{name}"
    if isinstance(admin, dict):
        yield from (f"admin.{name}" for name in ("token", "read_token") if is_raw_token(admin.get(name)))


def _located(findings: list[Finding], text: str) -> list[Finding]:
    """The findings with line and column, in the order of the file.

    A finding about a missing field gets the place where the object without it begins.
    """
    if not findings:
        return findings
    places = positions(text)
    located: list[Finding] = []
    for finding in findings:
        path = finding.path
        while path and path not in places:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        line, column = places[path] if path else (None, None)
        located.append(replace(finding, line=line, column=column))
    return sorted(located, key=lambda finding: (finding.line or 0, finding.column or 0))
