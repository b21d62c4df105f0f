"""Explains TLS errors to people: whose fault it is, and which option of the config may help.

One cause has one text and one `PeerError.key`, no matter whether the answer, the end of the connection or a reset is
noticed first.

Texts from the peer (names in its certificate) are untrusted input; they are shortened and reduced to one line.
"""

from __future__ import annotations

import ssl
from typing import Final

from ...config.model import TlsConfig
from ...errors import EndReason, PeerError
from ...text import one_line, shorten

# openssl/x509_vfy.h: X509_V_ERR_...
_EXPIRED: Final = 10
_NOT_YET_VALID: Final = 9
_OTHER_NAME: Final = frozenset({62, 64})  # HOSTNAME_MISMATCH, IP_ADDRESS_MISMATCH
# UNABLE_TO_GET_ISSUER_CERT, DEPTH_ZERO_SELF_SIGNED_CERT, SELF_SIGNED_CERT_IN_CHAIN,
# UNABLE_TO_GET_ISSUER_CERT_LOCALLY, UNABLE_TO_VERIFY_LEAF_SIGNATURE
_UNKNOWN_AUTHORITY: Final = frozenset({2, 18, 19, 20, 21})

_VERSION: Final = frozenset({"TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW"})
_WANTS_CERTIFICATE: Final = frozenset({"TLSV13_ALERT_CERTIFICATE_REQUIRED"})
# A TLS 1.2 server that wants a client certificate and gets none sends only this alert.
_HANDSHAKE_FAILURE: Final = frozenset({"SSLV3_ALERT_HANDSHAKE_FAILURE"})
_REFUSES_CERTIFICATE: Final = frozenset(
    {
        "TLSV1_ALERT_UNKNOWN_CA",
        "TLSV1_ALERT_ACCESS_DENIED",
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    }
)
_UNKNOWN_NAME: Final = frozenset({"TLSV1_UNRECOGNIZED_NAME", "TLSV1_ALERT_UNRECOGNIZED_NAME"})
_HANDSHAKE_RECORDS: Final = (b"\x16\x03", b"\x15\x03")  # RFC 8446 section 5.1: handshake, alert
_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST"})  # as OpenSSL names it
_NAMES: Final = 5
_NAME_CHARS: Final = 60

NO_CERTIFICATE: Final = "wants a certificate of the client: set tls.cert_file and tls.key_file"


def not_accepted(exc: ssl.SSLCertVerificationError, info: dict[str, object], name: str, config: TlsConfig) -> PeerError:
    """The error for a certificate of the server ``name`` that is not accepted. ``info``: its `certificate_info`."""
    code, begin = exc.verify_code, f"the certificate of {name}"
    if code == _EXPIRED:
        text = f"{begin} has expired{_date(info, 'notAfter')}; renew it at the server, or set this machine's clock"
    elif code == _NOT_YET_VALID:
        text = f"{begin} is not yet valid{_date(info, 'notBefore')}; set this machine's clock"
    elif code in _OTHER_NAME:
        text = f"{begin} is not for {name}{_names(info)}; use one of its names in server or tls.server_name"
    elif code in _UNKNOWN_AUTHORITY:
        trusted = "this system" if config.ca_file is None else f"tls.ca_file {config.ca_file}"
        remedy = "set tls.ca_file to its authority's certificate, and let the server send its whole chain"
        text = f"{begin} is from an authority that {trusted} does not know ({exc.verify_message}); {remedy}"
    else:
        text = f"{begin} is not accepted: {exc.verify_message}"
    return PeerError(text, reason=EndReason.TLS, key=f"certificate {code} of {name}")


def is_unknown_authority(exc: ssl.SSLCertVerificationError) -> bool:
    """Whether the certificate was refused because no trusted authority has signed it."""
    return exc.verify_code in _UNKNOWN_AUTHORITY


def failed(exc: OSError, first: bytes, name: str, address: str, config: TlsConfig) -> PeerError:
    """The error for a handshake that failed, except for a refused certificate. ``first``: the first bytes of the
    server's answer."""
    reason = getattr(exc, "reason", None)
    is_gone = isinstance(exc, ssl.SSLEOFError | ssl.SSLZeroReturnError | ConnectionError)
    in_tls = bool(first) and first.startswith(tuple(record[: len(first)] for record in _HANDSHAKE_RECORDS))
    # A plain HTTP server takes our ClientHello for a request: it answers, closes, and resets. Which of these we notice
    # first depends on timing.
    if (first and not in_tls) or reason in _NO_TLS or (is_gone and not in_tls):
        problem = "this port does not speak TLS; use http:// if it speaks plain HTTP, else the proxy's TLS port"
    elif is_gone:
        problem = "the server closed the connection"
    else:
        problem = _alert(exc, config) or str(reason or exc.strerror or exc)
    return PeerError(
        f"TLS handshake with {name} ({address}) failed: {problem}", reason=EndReason.TLS, key=f"tls: {problem}"
    )


def broke(exc: ssl.SSLError, address: str, config: TlsConfig) -> PeerError:
    """The error for a connection that broke after its handshake. With TLS 1.3 the server verifies the client's
    certificate only then."""
    problem = _alert(exc, config) or exc.reason or str(exc)
    return PeerError(f"TLS connection to {address} broke: {problem}", reason=EndReason.BROKEN, key=f"tls: {problem}")


def _alert(exc: OSError, config: TlsConfig) -> str | None:
    reason = getattr(exc, "reason", None)
    if reason in _VERSION:
        return f"the server speaks no TLS version that tls.min_version {config.min_version} allows"
    if reason in _WANTS_CERTIFICATE or (reason in _HANDSHAKE_FAILURE and config.cert_file is None):
        if reason in _HANDSHAKE_FAILURE:
            return f"the server refuses ({reason}); perhaps it {NO_CERTIFICATE}"
        return f"the server {NO_CERTIFICATE}"
    if reason in _REFUSES_CERTIFICATE and config.cert_file is not None:
        return f"the server does not accept the certificate of tls.cert_file {config.cert_file} ({reason})"
    if reason in _REFUSES_CERTIFICATE:
        return f"the server refuses this client ({reason}); perhaps it {NO_CERTIFICATE}"
    if reason in _UNKNOWN_NAME:
        return "the server does not know the name; check server and tls.server_name"
    return None


def certificate_info(tls: ssl.SSLSocket | ssl.SSLObject) -> dict[str, object]:
    """The certificate that was refused or not verified, in the format of `ssl.SSLSocket.getpeercert`.

    Only a private object of CPython has it. Without that object this is empty, and messages say less.
    """
    try:
        chain = tls._sslobj.get_unverified_chain()  # type: ignore[union-attr]
        info: dict[str, object] = chain[0].get_info()
    except (AttributeError, IndexError, TypeError, ValueError, ssl.SSLError):
        return {}
    return info


def _date(info: dict[str, object], which: str) -> str:
    date = info.get(which)
    return f" ({which} {date})" if date else ""


def _names(info: dict[str, object]) -> str:
    alternatives = info.get("subjectAltName")
    if not isinstance(alternatives, tuple) or not alternatives:
        return ""
    names = [shorten(one_line(str(value)), _NAME_CHARS) for _, value in alternatives]
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return f" but for {', '.join(names[:_NAMES])}{more}"
