"""One probe, from the command line's options to its exit code."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator
from dataclasses import replace
from os.path import lexists
from typing import Final

import trio

from .. import exit_codes
from ..config import parsers
from ..config.diagnostics import InvalidValue, quote
from ..config.load import check
from ..config.model import ClientConfig, Secret, TlsConfig, Url, addressed
from ..config.placeholders import PROBLEM, is_placeholder
from ..config.urls import parse_host, parse_proxy, parse_url
from ..errors import HostError, leaves
from ..files import UnreadableFile, read_file
from ..host.ipv6 import has_ipv6, ipv6_remedy
from ..text import one_line
from .ages import MAX_AGE_S
from .idle import LIMIT_S
from .measured import Measured
from .report import report_json, report_text
from .steps import measure
from .verdict import judge

USABLE: Final = 0
NOT_USABLE: Final = 1

TOTAL_S: Final = 75.0  # for everything except the tests for limits of age and silence


class Misused(Exception):
    """An option has an unusable value. The text is for the user."""


def probe(arguments: Namespace) -> int:
    """Measure, print, and return the exit code."""
    try:
        config = client_config(arguments)
        limit_s: float = arguments.idle_limit
        if not 0 <= limit_s <= LIMIT_S:
            text = f"--idle-limit {limit_s:g} is not between 0 and {LIMIT_S:g}"
            raise Misused(f"{text}; a server itself ends streams that are silent for longer")
        age_limit_s: float = arguments.age_limit
        if not 0 <= age_limit_s <= MAX_AGE_S:
            text = f"--age-limit {age_limit_s:g} is not between 0 and {MAX_AGE_S:g}"
            raise Misused(f"{text}; a client replaces its streams every 15 minutes anyway")
    except Misused as exc:
        return _misused(str(exc))
    measured = Measured(config.server.shown, config.transport, config.device)
    if has_ipv6(addressed(config)) is False:
        measured.has_ipv6, measured.ipv6_remedy = False, ipv6_remedy(addressed(config))
    began = time.monotonic()
    try:
        stopped_by = trio.run(measure_until_stopped, config, limit_s, measured, age_limit_s)
    except* HostError as group:
        failures = [str(exc) for exc in leaves(group)]
    else:
        failures = []
    if failures:
        return _misused("; ".join(failures))
    measured.seconds = time.monotonic() - began
    if stopped_by is not None:
        print(f"tapotun probe: stopped by {signal.Signals(stopped_by).name}, no verdict", file=sys.stderr)
        return 128 + stopped_by
    verdict = judge(measured)
    print(report_json(measured, verdict) if arguments.json else report_text(measured, verdict))
    return USABLE if verdict.usable else NOT_USABLE


def _misused(text: str) -> int:
    print(f"tapotun probe: error: {one_line(text)}", file=sys.stderr)
    return exit_codes.USAGE


async def measure_until_stopped(
    config: ClientConfig, idle_limit_s: float, measured: Measured, age_limit_s: float = 0.0
) -> int | None:
    """Measure until done, until the time is up, or until a signal, whose number is returned."""
    stopped_by: int | None = None

    async def stop(signals: AsyncIterator[int]) -> None:
        nonlocal stopped_by
        async for number in signals:
            stopped_by = number
            nursery.cancel_scope.cancel()

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop, signals)
            # Each age limit is tested twice.
            total_s = TOTAL_S + idle_limit_s + 2.5 * max(age_limit_s, idle_limit_s)
            with trio.move_on_after(total_s) as deadline:
                await measure(config, idle_limit_s, measured, age_limit_s)
            if deadline.cancelled_caught:
                measured.not_tested.append(f"the rest: the probe ends after {total_s:.0f} s")
            nursery.cancel_scope.cancel()
    return stopped_by


def client_config(arguments: Namespace) -> ClientConfig:
    """The client that these options describe. If they name a config file, its client with these options on top.

    Warns if other users can read the token file. Raises Misused.
    """
    if _is_file(arguments.url):
        given = _client_of_file(arguments.url, arguments.interface)
        if arguments.token_file is not None:
            given = replace(given, token=_token(arguments.token_file))
    else:
        if arguments.interface is not None:
            raise Misused("--interface chooses a client of a config file, and this is a URL; remove it")
        url = _url(arguments.url)
        if arguments.token_file is None:
            raise Misused("a URL needs --token-file F, the file with the client's raw token; or name a config file")
        given = ClientConfig(name="probe", server=url, token=_token(arguments.token_file))
    if arguments.proxy is not None:
        try:
            given = replace(given, proxy=parse_proxy(arguments.proxy))
        except InvalidValue as exc:
            raise Misused(f"--proxy {exc.shown or '***'} {exc.problem}; {exc.remedy}") from exc
    auth_header = arguments.auth_header or given.auth_header
    login = _login(arguments) or given.login
    if login is not None and auth_header != "x-api-key":
        raise Misused(f"--auth-header {auth_header} needs the header that Basic auth needs; give one of them")
    return replace(
        given,
        tls=_tls(arguments, given.tls),
        transport=arguments.transport or given.transport,
        auth_header=auth_header,
        headers=_headers(arguments.headers_file) or given.headers,
        login=login,
    )


def _is_file(text: str) -> bool:
    return "://" not in text and (
        text.startswith(("/", "./", "../")) or text.endswith((".json", ".jsonc")) or lexists(text)
    )


def _client_of_file(file: str, interface: str | None) -> ClientConfig:
    """The client of this name, or the only one. Raises Misused."""
    config, findings = check(file)
    if config is None:
        errors = [finding.text(file) for finding in findings if finding.severity == "error"]
        more = f" (and {len(errors) - 1} more: tapotun validate-config {shlex.quote(file)})" if errors[1:] else ""
        raise Misused(errors[0] + more)
    clients = {client.name: client for client in config.interfaces if isinstance(client, ClientConfig)}
    names = ", ".join(clients)
    if not clients:
        raise Misused(f"{file} has no client, and only a client's path can be probed; name the client's config")
    if interface is not None:
        if interface not in clients:
            raise Misused(f"--interface {quote(interface)} is no client of {file}; it has {names}")
        return clients[interface]
    if len(clients) > 1:
        raise Misused(f"{file} has {len(clients)} clients, {names}; choose one with --interface NAME")
    return next(iter(clients.values()))


def _url(text: str) -> Url:
    try:
        url, login = parse_url(text)
    except InvalidValue as exc:
        raise Misused(f"URL {exc.shown or quote(text)} {exc.problem}; {exc.remedy}") from exc
    if login is not None:
        raise Misused(
            "URL *** has a login, and every user of this machine can read a command line; give --user and "
            "--password-file instead"
        )
    return url


def _tls(arguments: Namespace, given: TlsConfig) -> TlsConfig:
    """The TLS options: those of the command line, or else ``given``. A certificate on the command line never uses the
    key of ``given``. Raises Misused."""
    server_name: str | None = given.server_name
    try:
        if arguments.server_name is not None:
            server_name = parse_host(arguments.server_name)
    except InvalidValue as exc:
        raise Misused(f"--server-name {quote(arguments.server_name)} {exc.problem}; {exc.remedy}") from exc
    if arguments.key_file and not arguments.cert_file:
        raise Misused("--key-file is given without --cert-file; give the certificate of the key")
    own_certificate = arguments.cert_file is not None
    return TlsConfig(
        ca_file=arguments.ca_file or given.ca_file,
        insecure=arguments.insecure or given.insecure,
        cert_file=arguments.cert_file if own_certificate else given.cert_file,
        key_file=arguments.key_file if own_certificate else given.key_file,
        server_name=server_name,
        min_version=arguments.min_version or given.min_version,
    )


def _login(arguments: Namespace) -> Secret | None:
    """The login for Basic auth, as from ``user`` and ``password_file`` in the config of a client."""
    user, file = arguments.user, arguments.password_file
    if user is None and file is None:
        return None
    if user is None or file is None:
        raise Misused("--user and --password-file belong together; give both")
    try:
        user = parsers.parse_user(user)
    except InvalidValue as exc:
        raise Misused(f"--user {quote(user)} {exc.problem}; {exc.remedy}") from exc
    data = _read("--password-file", file, "the password")
    try:
        text = parsers.secret_line(data, "password")
        return Secret(f"{user}:{parsers.parse_password(text).reveal()}")
    except InvalidValue as exc:
        raise Misused(f"--password-file {quote(file)} holds a password that {exc.problem}; {exc.remedy}") from exc


def _headers(name: str | None) -> tuple[tuple[str, Secret], ...]:
    """The headers in a file, one ``Name: value`` per line."""
    return () if name is None else parse_headers(name, _read("--headers-file", name, "further headers"))


def parse_headers(name: str, data: bytes) -> tuple[tuple[str, Secret], ...]:
    """The headers in the content of a file. Untrusted input; raises Misused, whose text never shows a value."""
    found: dict[str, tuple[str, Secret]] = {}
    for number, line in enumerate(data.decode("latin-1").split("\n"), 1):
        if not line.strip():
            continue
        key, colon, value = line.partition(":")
        try:
            if not colon:
                raise InvalidValue("has no colon", "write Name: value")
            if key.lower() in found:
                raise InvalidValue("has a header that an earlier line has too", "keep one")
            found[key.lower()] = parsers.parse_header_name(key), parsers.parse_header_value(value.strip(" \t\r"))
        except InvalidValue as exc:
            raise Misused(f"--headers-file {quote(name)}: line {number} {exc.problem}; {exc.remedy}") from exc
    return tuple(found.values())


def _read(option: str, name: str, what: str) -> bytes:
    """The content of a file with a secret. Warns if other users can read it. Raises Misused."""
    try:
        content = read_file(name, parsers.TOKEN_FILE_BYTES)
    except UnreadableFile as exc:
        remedy = exc.remedy or f"give the file that holds {what}"
        raise Misused(f"{option} {quote(name)} cannot be read: {exc}; {remedy}") from exc
    if content.public_mode is not None:
        text = f"{option} {quote(name)} can be read by every user of this machine (mode {content.public_mode:04o})"
        _warn(f"{text}; run chmod o-rwx {shlex.quote(name)}")
    return content.data


def _token(name: str) -> Secret:
    """The token in the file, read like a client's ``token_file``."""
    data = _read("--token-file", name, "the client's raw token")
    try:
        token = parsers.parse_token_file(data)
    except InvalidValue as exc:
        raise Misused(f"--token-file {quote(name)} holds a token that {exc.problem}; {exc.remedy}") from exc
    if parsers.looks_hashed(token.reveal()):
        text = f"--token-file {quote(name)} holds what looks like a hash, which belongs on the server"
        _warn(f"{text}; write the raw token into it, unless this is the raw token")
    elif is_placeholder(token.reveal()):
        _warn(f"--token-file {quote(name)} holds a token that {PROBLEM}; write the raw token into it")
    return token


def _warn(text: str) -> None:
    print(f"tapotun probe: warning: {one_line(text)}", file=sys.stderr)
