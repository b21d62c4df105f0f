"""The address of a client, as trusted proxies report it."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final

import trio

from ..config.model import IngressOptions
from ..errors import EndReason, PeerError
from ..host.net.sockets import Connection
from ..wire.proxyprotocol import ProxyHeaderParser
from .forwarded import Address, client_is_encrypted, client_of, with_port

# The time from accept to the end of the PROXY protocol header, which a proxy sends at once. A request head has the same
# limit.
PROXY_HEADER_S: Final = 10.0


class ClientAddress:
    """The far end of one connection: a client, or a trusted proxy."""

    __slots__ = ("_encrypted", "_ingress", "_is_trusted", "name")

    def __init__(self, name: str, ingress: IngressOptions, *, is_trusted: bool, encrypted: bool | None = None) -> None:
        """``encrypted``: whether the connection uses TLS; None: not known. Not used if ``is_trusted``."""
        self.name = name
        self._encrypted = encrypted
        self._ingress = ingress
        self._is_trusted = is_trusted

    def client(self, headers: Mapping[str, str]) -> str:
        """The client of a request, for logs: ``203.0.113.7 (through 127.0.0.1:51234)``. Only the parts of the headers
        that trusted proxies wrote are used."""
        if not self._is_trusted:
            return self.name
        client = client_of(headers, self._ingress.trusts)
        return self.name if client is None else f"{client} (through {self.name})"

    def encrypted(self, headers: Mapping[str, str]) -> bool | None:
        """Whether the client speaks TLS to the server or, according to the headers, to the first of the trusted
        proxies. None: not known. Only the parts of the headers that trusted proxies wrote are used."""
        return client_is_encrypted(headers, self._ingress.trusts) if self._is_trusted else self._encrypted


async def find_client_address(
    connection: Connection, ingress: IngressOptions, *, is_unix: bool
) -> ClientAddress | None:
    """Find the client's address. If ``ingress`` wants the PROXY protocol, read its header, and name the connection
    after the source in it.

    None: the peer closed or stayed silent before the header. Raises PeerError: ``untrusted-proxy``, or the bytes are
    not a header. If this is cancelled, the received part of the header is lost.
    """
    address = connection.remote_address
    # The zone of a link-local address is the name of an interface, which may be nearly any text.
    bare = None if address is None else address.partition("%")[0]
    is_trusted = ingress.trusts_unix if is_unix else bare is not None and ingress.trusts(ip_address(bare))
    if not ingress.proxy_protocol:
        return ClientAddress(connection.name, ingress, is_trusted=is_trusted, encrypted=connection.encrypted)
    if address is None and not is_unix:
        return None  # a health check that reset the connection at once
    # A header can claim any address, so the specification allows it from known proxies only (section 2).
    if not is_trusted:
        raise PeerError(
            f"{connection.name} refused: not among trusted_proxies, and only those may speak the PROXY protocol",
            reason=EndReason.UNTRUSTED_PROXY,
        )
    parser = await _read_header(connection)
    if parser is None:
        return None
    if parser.source is None:
        # The proxy's own connection, or one whose source the proxy does not know. Anyone may have written its HTTP
        # headers.
        return ClientAddress(connection.name, ingress, is_trusted=False)
    source: Address = parser.source.address
    # Whether the client uses TLS stays unknown: a proxy that forwards TCP may have terminated it.
    connection.name = f"{with_port(source, parser.source.port)} (through {connection.name})"
    return ClientAddress(connection.name, ingress, is_trusted=ingress.trusts(source))


async def _read_header(connection: Connection) -> ProxyHeaderParser | None:
    parser = ProxyHeaderParser()
    with trio.move_on_after(PROXY_HEADER_S) as deadline:
        while parser.needed:
            buffer = memoryview(bytearray(parser.needed))
            received = await connection.receive(buffer)
            if received == 0:
                if parser.started:
                    raise PeerError("closed within the PROXY protocol header", reason=EndReason.CLOSED)
                return None
            try:
                parser.feed(buffer[:received])
            except PeerError as exc:
                text = f"{connection.name} refused: {exc}; have the proxy send it, or set proxy_protocol to false"
                raise PeerError(text, reason=exc.reason) from exc
    if deadline.cancelled_caught:
        if parser.started:
            raise PeerError(
                f"no whole PROXY protocol header within {PROXY_HEADER_S:.0f} s", reason=EndReason.BAD_PROXY_HEADER
            )
        return None
    return parser
