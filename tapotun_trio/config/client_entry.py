"""A client's definition to a `ClientConfig`.

A choice of ours: a ``token`` that looks like a hash is an error, because nearly always it
is the server's line copied to the wrong side. Who has such a raw token keeps it in a ``token_file``,
where it is a warning.
"""

from __future__ import annotations

import re
import shlex
from typing import Final, cast

from . import fields
from .common import LoadContext
from .decode import Node
from .diagnostics import MASK, quote, show
from .files import FileContent
from .model import AuthHeader, ClientConfig, Secret, TlsConfig, TlsVersion, TransportChoice, Url
from .proxy import proxy as proxy_url
from .url import host, url

_TOKEN_FILE_BYTES: Final = 64 * 1024
_PEM_FILE_BYTES: Final = 64 * 1024 * 1024  # the system's own bundle has 0.2 MB
_PEM_KEY: Final = re.compile(rb"^-----BEGIN ([A-Z]+ )*PRIVATE KEY-----", re.MULTILINE)
# PKCS #8, and the older form of OpenSSL (RFC 1421 section 4.6.1.1)
_ENCRYPTED: Final = re.compile(rb"^(-----BEGIN ENCRYPTED PRIVATE KEY-----|Proc-Type: *4,ENCRYPTED)", re.MULTILINE)


def read_client(node: Node, reading: LoadContext) -> ClientConfig | None:
    """None only if errors were reported."""
    name = reading.name(node)
    mark = reading.mark(node)
    server = reading.parse(node.at("server"), node.get("server", str), url)
    path, token = _token(node, reading)
    tls = _tls(node, server, reading)
    rotate_s = _rotate_s(node, reading)
    transport = cast("TransportChoice | None", node.get("transport", str))
    transport_mark = _transport_mark(node, reading)
    proxy = reading.parse(node.at("proxy"), node.get("proxy", str), proxy_url)
    auth_header = cast("AuthHeader | None", node.get("auth_header", str))
    if server is not None and token is not None:
        reading.claims.login(path, server, token)
    if name is None or server is None or token is None or rotate_s is None or transport is None:
        return None
    if auth_header is None:
        return None
    return ClientConfig(
        name=name,
        server=server,
        token=token,
        mark=mark,
        tls=tls,
        rotate_s=rotate_s,
        transport=transport,
        auth_header=auth_header,
        proxy=proxy,
        transport_mark=transport_mark,
    )


def _token(node: Node, reading: LoadContext) -> tuple[str, Secret | None]:
    """Where the token stands, and the token."""
    path, file_path = node.at("token"), node.at("token_file")
    if "token" in node.given and "token_file" in node.given:
        reading.findings.error(file_path, "", 'stands beside "token", and only one can hold', "remove one")
    if "token" in node.given:
        token = reading.parse(path, node.get("token", str), fields.raw_token)
        if token is not None and fields.looks_hashed(token.reveal()):
            reading.findings.error(
                path,
                MASK,
                "looks like a hash, which belongs on the server",
                "write the raw token; if this is the raw token, keep it in a token_file",
            )
        return path, token
    if "token_file" in node.given:
        name = node.get("token_file", str)
        return file_path, None if name is None else _token_from(file_path, name, reading)
    reading.findings.error(
        path, "", "is missing", 'add "token": "<raw token>", or "token_file" with the path of a file'
    )
    return path, None


def _token_from(path: str, name: str, reading: LoadContext) -> Secret | None:
    content = reading.file(path, name, _TOKEN_FILE_BYTES)
    if content is None:
        return None
    if content.public_mode is not None:
        reading.findings.warning(
            path,
            quote(name),
            f"can be read by every user of this machine (mode {content.public_mode:04o})",
            f"run chmod 600 {shlex.quote(name)}",
        )
    line = content.data.removesuffix(b"\n").removesuffix(b"\r")
    # Latin-1 maps each byte to one character, so raw_token sees and refuses what is not ASCII.
    try:
        token = fields.raw_token(line.decode("latin-1"))
    except fields.Invalid as exc:
        reading.findings.error(path, quote(name), f"holds a token that {exc.problem}", exc.remedy)
        return None
    if fields.looks_hashed(token.reveal()):
        reading.findings.warning(
            path,
            quote(name),
            "holds what looks like a hash",
            "write the raw token into it, unless this is the raw token",
        )
    return token


def _tls(node: Node, server: Url | None, reading: LoadContext) -> TlsConfig:
    inner = node.get("tls", Node)
    if inner is None:
        return TlsConfig()
    if server is not None and server.scheme == "http":
        reading.findings.warning(inner.path, "", "has no effect on an http URL", 'write "https://..." or remove it')
    insecure = inner.get("insecure", bool) or False
    path, ca_file = inner.at("ca_file"), inner.get("ca_file", str)
    checked = 'set "ca_file" to the authority\'s certificate instead'
    if insecure and ca_file is not None:
        reading.findings.warning(path, quote(ca_file), 'has no effect beside "insecure": true', "remove one of them")
    elif insecure and server is not None and server.scheme == "https":
        problem = "leaves the server unchecked: whoever is on the way can pose as it and take the token"
        reading.findings.warning(inner.at("insecure"), "true", problem, checked)
    if ca_file is not None:
        reading.file(path, ca_file, _PEM_FILE_BYTES)
    cert_file, key_file = _certificate(inner, reading)
    tls = TlsConfig(
        ca_file=None if ca_file is None else reading.beside(ca_file),
        insecure=insecure,
        cert_file=cert_file,
        key_file=key_file,
        server_name=reading.parse(inner.at("server_name"), inner.get("server_name", str), host),
        min_version=cast("TlsVersion | None", inner.get("min_version", str)) or "1.2",
    )
    if server is not None and server.scheme == "https":
        _judge(inner, tls, reading)
    return tls


def _judge(inner: Node, tls: TlsConfig, reading: LoadContext) -> None:
    """What only a TLS library can say of the files, unless it is said already that one is wrong."""
    if reading.tls_validator is None or (tls.ca_file is None and tls.cert_file is None):
        return
    if any(f.severity == "error" and f.path.startswith(f"{inner.path}.") for f in reading.findings.found):
        return
    found = reading.tls_validator(tls)
    if found is not None:
        name = inner.get(found.option, str) or ""
        reading.findings.error(inner.at(found.option), quote(name), found.problem, found.remedy)


def _certificate(tls: Node, reading: LoadContext) -> tuple[str | None, str | None]:
    """The files of the client's certificate and of its key. What only OpenSSL can say of them says `_judge`."""
    cert_path, cert_file = tls.at("cert_file"), tls.get("cert_file", str)
    key_path, key_file = tls.at("key_file"), tls.get("key_file", str)
    if cert_file is None:
        if key_file is not None and "cert_file" not in tls.given:
            reading.findings.error(key_path, quote(key_file), 'stands without "cert_file"', 'add "cert_file"')
        return None, None
    content = reading.file(cert_path, cert_file, _PEM_FILE_BYTES)
    path, name = cert_path, cert_file
    if key_file is not None:
        content = reading.file(key_path, key_file, _PEM_FILE_BYTES)
        path, name = key_path, key_file
    if content is not None:
        _key(path, name, content, reading)
    return reading.beside(cert_file), None if key_file is None else reading.beside(key_file)


def _key(path: str, name: str, content: FileContent, reading: LoadContext) -> None:
    if not _PEM_KEY.search(content.data):
        problem, remedy = "holds no private key in PEM", 'write the path of one as "key_file"'
        reading.findings.error(path, quote(name), problem, remedy)
    elif _ENCRYPTED.search(content.data):
        problem = "holds an encrypted key, and nobody is there to type its password"
        reading.findings.error(path, quote(name), problem, "decrypt it (openssl pkey) and let only root read it")
    elif content.public_mode is not None:
        reading.findings.warning(
            path,
            quote(name),
            f"can be read by every user of this machine (mode {content.public_mode:04o})",
            f"run chmod 600 {shlex.quote(name)}",
        )


def _rotate_s(node: Node, reading: LoadContext) -> tuple[float, float] | None:
    """None only if errors were reported."""
    numbers = node.numbers("rotate_s")
    if len(numbers) != 2:
        return None
    (_, least), (path, most) = numbers
    if most < least:
        # As they are written, most likely.
        first, second = (show(int(n) if n.is_integer() else n) for n in (least, most))
        reading.findings.error(path, second, f"is less than the {first} before it", "write the lesser first")
        return None
    return least, most


def _transport_mark(node: Node, reading: LoadContext) -> int | None:
    """None also if there is none."""
    value = node.get("transport_mark", int)
    inner = node.get("mark", Node)
    if value is not None and inner is not None and inner.get("value", int) == value:
        reading.findings.error(
            node.at("transport_mark"),
            show(value),
            f"is the mark of {inner.at('value')} too, and the transport would enter its own tunnel",
            "choose another mark",
        )
    return value
