"""TLS options: from type-checked JSON (`Node`) to a `TlsConfig`. The rules are those of `validate`."""

from __future__ import annotations

import re
from typing import Final, Literal, cast

from ..files import FileContent
from . import parsers, urls
from .context import LoadContext
from .diagnostics import quote
from .model import TlsConfig, TlsVersion
from .typecheck import Node

_PEM_KEY: Final = re.compile(rb"^-----BEGIN ([A-Z]+ )*PRIVATE KEY-----", re.MULTILINE)
# PKCS #8, and the older form of OpenSSL (RFC 1421 section 4.6.1.1)
_ENCRYPTED: Final = re.compile(rb"^(-----BEGIN ENCRYPTED PRIVATE KEY-----|Proc-Type: *4,ENCRYPTED)", re.MULTILINE)


def validate_tls(
    owner: Node, scheme: Literal["http", "https"] | None, context: LoadContext, insecure_harm: str
) -> TlsConfig:
    """Validate the field ``tls`` of an object. Returns defaults where errors were reported.

    ``scheme``: of the URL that the options are for; None: it is invalid. ``insecure_harm``: the problem with
    ``"insecure": true``, for its warning.
    """
    tls_node = owner.get("tls", Node)
    if tls_node is None:
        return TlsConfig()
    if scheme == "http":
        remedy = 'write "https://..." or remove it'
        context.findings.warning(tls_node.path, "", "has no effect on an http URL", remedy)
    ca_file = tls_node.get("ca_file", str)
    insecure = tls_node.get("insecure", bool) or False
    if insecure and ca_file is not None:
        problem = 'has no effect together with "insecure": true'
        context.findings.warning(tls_node.at("ca_file"), quote(ca_file), problem, "remove one of them")
    elif insecure and scheme == "https":
        remedy = 'set "ca_file" to the authority\'s certificate instead'
        context.findings.warning(tls_node.at("insecure"), "true", insecure_harm, remedy)
    if ca_file is not None:
        context.read_file(tls_node.at("ca_file"), ca_file, parsers.PEM_FILE_BYTES, regular=True)
    cert_file, key_file = _validate_certificate(tls_node, context)
    tls = TlsConfig(
        ca_file=None if ca_file is None else context.absolute_path(ca_file),
        insecure=insecure,
        cert_file=cert_file,
        key_file=key_file,
        server_name=context.parse_field(tls_node, "server_name", urls.parse_host),
        min_version=cast("TlsVersion | None", tls_node.get("min_version", str)) or "1.2",
    )
    if scheme == "https":
        _validate_files(tls_node, tls, context)
    return tls


def _validate_certificate(tls_node: Node, context: LoadContext) -> tuple[str | None, str | None]:
    """The absolute paths of the client's certificate and of its key.

    `_validate_files` checks what only OpenSSL can find out about them.
    """
    cert_path, cert_file = tls_node.at("cert_file"), tls_node.get("cert_file", str)
    key_path, key_file = tls_node.at("key_file"), tls_node.get("key_file", str)
    if cert_file is None:
        if key_file is not None and "cert_file" not in tls_node.given:
            context.findings.error(key_path, quote(key_file), 'is given without "cert_file"', 'add "cert_file"')
        return None, None
    content = context.read_file(cert_path, cert_file, parsers.PEM_FILE_BYTES, regular=True)
    path, name = cert_path, cert_file
    if key_file is not None:
        content = context.read_file(key_path, key_file, parsers.PEM_FILE_BYTES, regular=True)
        path, name = key_path, key_file
    if content is not None:
        _check_key(path, name, content, context)
    key = None if key_file is None else context.absolute_path(key_file)
    return context.absolute_path(cert_file), key


def _check_key(path: str, name: str, content: FileContent, context: LoadContext) -> None:
    """Report a file that holds no private key, or one that cannot be used or is public."""
    if not _PEM_KEY.search(content.data):
        problem, remedy = "holds no private key in PEM", 'write the path of one as "key_file"'
        context.findings.error(path, quote(name), problem, remedy)
    elif _ENCRYPTED.search(content.data):
        problem = "holds an encrypted key, and nobody is there to type its password"
        context.findings.error(path, quote(name), problem, "decrypt it (openssl pkey) and let only root read it")
    else:
        context.warn_if_public(path, name, content)


def _validate_files(tls_node: Node, tls: TlsConfig, context: LoadContext) -> None:
    """Report what only a TLS library can find in the files, unless a TLS option has an error already."""
    validator = context.tls_validator
    if validator is None or (tls.ca_file is None and tls.cert_file is None):
        return
    if context.findings.has_error_below(tls_node.path):
        return
    problem = validator(tls)
    if problem is not None:
        name = tls_node.get(problem.option, str) or ""
        context.findings.error(tls_node.at(problem.option), quote(name), problem.problem, problem.remedy)
