"""Loads the files that the TLS options name into an SSL context. It does not use trio, since it also checks a config
that does not run yet."""

from __future__ import annotations

import ssl

from ...config.model import TlsConfig, TlsOption, TlsProblem
from ...errors import HostError, ShortageError, passing_shortages, shortage_of
from ...files import permission_remedy
from ..process.descriptors import no_descriptor_left


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


def client_context(config: TlsConfig) -> ssl.SSLContext:
    """A context with the client's certificate that trusts the system's authorities, or those in ``ca_file`` instead, or
    any certificate (``insecure``).

    Raises UselessFile if a file cannot be read or has the wrong content, and ShortageError.
    """
    with passing_shortages("cannot set TLS up"):
        return _client_context(config)


def _client_context(config: TlsConfig) -> ssl.SSLContext:
    # If OpenSSL cannot open one of the system's files it reports nothing, and the context then trusts no authority.
    if config.ca_file is None and (shortage := no_descriptor_left("cannot read what this system trusts")) is not None:
        raise shortage
    context = ssl.create_default_context() if config.ca_file is None else _trusting(config.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if config.min_version == "1.3" else ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # With TLS 1.2 a server could request a new handshake at any time, and sending would have to wait for receiving.
    context.options |= ssl.OP_NO_RENEGOTIATION
    if config.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    _load_certificate(context, config)
    return context


def _trusting(ca_file: str) -> ssl.SSLContext:
    _readable("ca_file", ca_file)
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as exc:
        problem = f"holds no certificate that can be trusted{_reason(exc)}"
        raise UselessFile(
            ca_file, TlsProblem("ca_file", problem, "give a PEM file with the authority's certificate")
        ) from exc


class _EncryptedKey(Exception):
    """OpenSSL asked for a password."""


def _load_certificate(context: ssl.SSLContext, config: TlsConfig) -> None:
    """Raises UselessFile, naming the file to change."""
    cert_file, key_file = config.cert_file, config.key_file
    if cert_file is None:
        return
    _readable("cert_file", cert_file)
    if key_file is not None:
        _readable("key_file", key_file)

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


def _readable(option: TlsOption, file: str) -> None:
    try:
        with open(file, "rb"):
            pass
    except OSError as exc:
        if shortage_of(exc, "") is not None:
            raise
        denied = isinstance(exc, PermissionError)
        remedy = permission_remedy(file) if denied else "give a PEM file that can be read"
        found = TlsProblem(option, f"cannot be read: {exc.strerror or exc}", remedy)
        raise UselessFile(file, found) from exc


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
