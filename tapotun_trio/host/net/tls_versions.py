"""Finds out which TLS versions a server offers, by handshakes that verify nothing: no data may be sent over them."""

from __future__ import annotations

import ssl
import warnings
from typing import Final

from ...config.model import TlsConfig
from ...errors import PeerError
from .sockets import Connection
from .tls import TlsClient
from .tls_files import client_context

# Names as `ssl.SSLSocket.version` has them, oldest first.
VERSIONS: Final = {
    "TLSv1": ssl.TLSVersion.TLSv1,
    "TLSv1.1": ssl.TLSVersion.TLSv1_1,
    "TLSv1.2": ssl.TLSVersion.TLSv1_2,
    "TLSv1.3": ssl.TLSVersion.TLSv1_3,
}


class VersionClient(TlsClient):
    """Makes handshakes with exactly one version, and with any server."""

    __slots__ = ()

    def __init__(self, config: TlsConfig, version: str) -> None:
        """Raises UselessFile as `client_context` does."""
        super().__init__(config)
        context = client_context(config)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the old versions are deprecated, but we test for them
            # Lower the minimum first: OpenSSL refuses a maximum below the minimum.
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = context.minimum_version = VERSIONS[version]
        if version in ("TLSv1", "TLSv1.1"):
            context.set_ciphers("DEFAULT@SECLEVEL=0")  # OpenSSL 3 allows these versions only at this level
        self._context = context


async def certificate_by(
    connection: Connection, config: TlsConfig, version: str, host: str
) -> dict[str, object] | None:
    """The unverified certificate that the server sends with this version; None if it does not support the version.

    Closes ``connection``, also if cancelled. The caller bounds the time.
    """
    client = VersionClient(config, version)
    try:
        tls = await client.handshake(connection, host)
    except PeerError:
        return None
    try:
        return tls.certificate()
    finally:
        tls.client = None  # the session of an unverified handshake must not be kept
        tls.close()
