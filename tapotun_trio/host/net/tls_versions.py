"""Which versions of TLS a server offers, found out by handshakes that check nobody: nothing may be sent on them."""

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
    """A handshake with one version and no other, with whoever it is."""

    __slots__ = ()

    def __init__(self, config: TlsConfig, version: str) -> None:
        """Raises UselessFile as `client_context` does."""
        super().__init__(config)
        context = client_context(config)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the old versions, which is what we ask about
            # Downwards first: a minimum above the maximum is refused.
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = context.minimum_version = VERSIONS[version]
        if version in ("TLSv1", "TLSv1.1"):
            context.set_ciphers("DEFAULT@SECLEVEL=0")  # OpenSSL 3 has their signatures at no other level
        self._context = context


async def certificate_by(
    connection: Connection, config: TlsConfig, version: str, host: str
) -> dict[str, object] | None:
    """The certificate that the server shows in this version, of which nothing was checked; None: it does not speak it.
    Closes ``connection``. The caller bounds the time. Cancelled, it is closed too."""
    client = VersionClient(config, version)
    try:
        tls = await client.handshake(connection, host)
    except PeerError:
        return None
    try:
        return tls.certificate()
    finally:
        tls.client = None  # no session of an unchecked handshake is kept
        tls.close()
