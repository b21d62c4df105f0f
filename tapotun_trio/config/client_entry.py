"""A client's definition to a `ClientConfig`.

Where the issue leaves room: a ``token`` that looks like a hash is an error, because nearly always it
is the server's line copied to the wrong side. Who has such a raw token keeps it in a ``token_file``,
where it is a warning.
"""

from __future__ import annotations

import shlex
from typing import Final, cast

from . import fields
from .common import Reading
from .decode import Node
from .findings import MASK, quote, show
from .model import AuthHeader, ClientConfig, Secret, TlsConfig, TransportChoice, Url
from .url import url

_TOKEN_FILE_BYTES: Final = 64 * 1024
_CA_FILE_BYTES: Final = 64 * 1024 * 1024  # the system's own bundle has 0.2 MB


def read_client(node: Node, reading: Reading) -> ClientConfig | None:
    """None only if errors were reported."""
    name = reading.name(node)
    mark = reading.mark(node)
    server = reading.parse(node.at("server"), node.get("server", str), url)
    path, token = _token(node, reading)
    tls = _tls(node, server, reading)
    rotate_s = _rotate_s(node, reading)
    transport = cast("TransportChoice | None", node.get("transport", str))
    transport_mark = _transport_mark(node, reading)
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
        transport_mark=transport_mark,
    )


def _token(node: Node, reading: Reading) -> tuple[str, Secret | None]:
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


def _token_from(path: str, name: str, reading: Reading) -> Secret | None:
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


def _tls(node: Node, server: Url | None, reading: Reading) -> TlsConfig:
    inner = node.get("tls", Node)
    if inner is None:
        return TlsConfig()
    if server is not None and server.scheme == "http":
        reading.findings.warning(inner.path, "", "has no effect on an http URL", 'write "https://..." or remove it')
    insecure = inner.get("insecure", bool) or False
    path, name = inner.at("ca_file"), inner.get("ca_file", str)
    if name is None:
        return TlsConfig(insecure=insecure)
    if insecure:
        reading.findings.warning(path, quote(name), 'has no effect beside "insecure": true', "remove one of them")
    reading.file(path, name, _CA_FILE_BYTES)
    return TlsConfig(ca_file=reading.beside(name), insecure=insecure)


def _rotate_s(node: Node, reading: Reading) -> tuple[float, float] | None:
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


def _transport_mark(node: Node, reading: Reading) -> int | None:
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
