"""Loads the files that the TLS options name into an SSL context. It does not use trio, since it also checks a config
that does not run yet."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TypeAlias

from ...config.model import TlsConfig, TlsOption, TlsProblem
from ...config.parsers import PEM_FILE_BYTES
from ...errors import HostError, ShortageError, passing_shortages, shortage_of
from ...files import UnreadableFile, read_file
from ..process.descriptors import no_descriptor_left

Began: TypeAlias = Callable[[str], None]  # called with the file that is read next, for people: "tls.ca_file /x.pem"


class UselessFile(HostError):
    """A file that the TLS options name is unusable. Attribute ``found``: which one, why, and what to do."""

    def __init__(self, file: str, found: TlsProblem) -> None:
        super().__init__(f"tls.{found.option} {file} {found.problem}; {found.remedy}")
        self.found = found


def judge_files(config: TlsConfig) -> TlsProblem | None:
    """Why the files that ``config`` names are unusable; None if they are usable. Blocking: reads them."""
    try:
        with passing_shortages("cannot be checked now"):
            # The system's certificates are not part of the config, so they are not checked.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if config.ca_file is None else _trusting(config.ca_file)
            _load_certificate(context, config)
    except ShortageError as exc:
        option: TlsOption = "cert_file" if config.ca_file is None else "ca_file"
        return TlsProblem(option, f"cannot be checked now: {exc.lack}", exc.remedy)
    except UselessFile as exc:
        return exc.found
    return None


def client_context(config: TlsConfig, began: Began = lambda file: None) -> ssl.SSLContext:
    """A context with the client's certificate that trusts the system's authorities, or those in ``ca_file`` instead, or
    any certificate (``insecure``).

    Blocking: reads the files, and may wait for a disk. ``began``: called before each file is read.

    Raises UselessFile if a file cannot be read or has the wrong content, and ShortageError.
    """
    with passing_shortages("cannot set TLS up"):
        return _client_context(config, began)


def _client_context(config: TlsConfig, began: Began) -> ssl.SSLContext:
    if config.ca_file is None:
        began("the certificates that this system trusts")
    # If OpenSSL cannot open one of the system's files it reports nothing, and the context then trusts no authority.
    if config.ca_file is None and (shortage := no_descriptor_left("cannot read what this system trusts")) is not None:
        raise shortage
    context = ssl.create_default_context() if config.ca_file is None else _trusting(config.ca_file, began)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if config.min_version == "1.3" else ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # With TLS 1.2 a server could request a new handshake at any time, and sending would have to wait for receiving.
    context.options |= ssl.OP_NO_RENEGOTIATION
    if config.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    _load_certificate(context, config, began)
    return context


def _trusting(ca_file: str, began: Began = lambda file: None) -> ssl.SSLContext:
    _require_readable("ca_file", ca_file, began)
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as exc:
        problem = f"holds no certificate that can be trusted{_reason(exc)}"
        raise UselessFile(
            ca_file, TlsProblem("ca_file", problem, "give a PEM file with the authority's certificate")
        ) from exc
    except OSError as exc:
        raise _lost("ca_file", ca_file, exc) from exc


class _EncryptedKey(Exception):
    """OpenSSL asked for a password."""


def _load_certificate(context: ssl.SSLContext, config: TlsConfig, began: Began = lambda file: None) -> None:
    """Raises UselessFile, naming the file to change."""
    cert_file, key_file = config.cert_file, config.key_file
    if cert_file is None:
        return
    _require_readable("cert_file", cert_file, began)
    if key_file is not None:
        _require_readable("key_file", key_file, began)

    def refuse() -> str:
        raise _EncryptedKey

    try:
        context.load_cert_chain(cert_file, key_file, password=refuse)
    except _EncryptedKey as exc:
        problem = "holds an encrypted key, and nobody is there to type its password"
        raise _of_key(config, problem, "decrypt it (openssl pkey) and let only root read it") from exc
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            problem = f"holds a key that does not match the certificate of tls.cert_file {cert_file}"
            raise _of_key(config, problem, "give the key that this certificate was issued for") from exc
        if not _holds_certificate(cert_file):
            found = TlsProblem("cert_file", f"holds no PEM certificate{_reason(exc)}", "give one, with its chain")
            raise UselessFile(cert_file, found) from exc
        remedy = "give one; without tls.key_file it has to be in tls.cert_file" if key_file is None else "give one"
        raise _of_key(config, f"holds no PEM key that can be used{_reason(exc)}", remedy) from exc
    except OSError as exc:
        raise _lost("cert_file", cert_file, exc) from exc


def _require_readable(option: TlsOption, file: str, began: Began) -> None:
    """Raises UselessFile if the file cannot be read. OpenSSL, which reads it again, names no file in its errors, and
    would wait for a pipe for ever."""
    began(f"tls.{option} {file}")
    try:
        read_file(file, PEM_FILE_BYTES, regular=True)
    except UnreadableFile as exc:
        if exc.__cause__ is not None and shortage_of(exc.__cause__, "") is not None:
            raise exc.__cause__ from None
        found = TlsProblem(option, f"cannot be read: {exc}", exc.remedy or "give a PEM file that can be read")
        raise UselessFile(file, found) from exc


def _lost(option: TlsOption, file: str, exc: OSError) -> OSError | UselessFile:
    """The error for a file, or for its key, that could be read a moment before. A shortage is returned unchanged."""
    if shortage_of(exc, "") is not None:
        return exc
    problem = f"cannot be read any more: {exc.strerror or exc}"
    return UselessFile(file, TlsProblem(option, problem, "give a PEM file that can be read"))


def _of_key(config: TlsConfig, problem: str, remedy: str) -> UselessFile:
    if config.key_file is not None:
        return UselessFile(config.key_file, TlsProblem("key_file", problem, remedy))
    return UselessFile(str(config.cert_file), TlsProblem("cert_file", problem, remedy))


def _holds_certificate(file: str) -> bool:
    """Whether the file has a certificate: OpenSSL does not say which of the two files it could not use."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except (OSError, ssl.SSLError):
        return False
    return True


def _reason(exc: ssl.SSLError) -> str:
    return f" ({exc.reason})" if exc.reason else ""
