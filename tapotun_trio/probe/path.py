"""Measures the path to the server in the steps of the client's transport: DNS, TCP, an outgoing proxy, TLS."""

from __future__ import annotations

import errno
import os
import ssl
import time
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import Final

import trio

from ..config.model import ClientConfig
from ..errors import EndReason, PeerError
from ..host.net.dial import connect
from ..host.net.resolver import Resolver
from ..host.net.segments import SegmentLimits
from ..host.net.sockets import Connection, address_text
from ..host.net.tls import TlsClient
from ..http.client import CONNECT_S, effective_proxy, open_connection, secure
from ..text import one_line, shorten
from .measured import Dns, Measured, PathMtu, Tcp, Tls

ADDRESS_S: Final = 4.0  # for one address; all are tried at the same time
MAX_ADDRESSES: Final = 8
VERSION_S: Final = 4.0  # for each version's handshake
_DAY_S: Final = 86400.0

# How the kernel refuses an address of a family that this machine does not have: there is no route, IPv6 is switched
# off, or it is not in the kernel.
_NO_ROUTE: Final = tuple(map(os.strerror, (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)))


class Path:
    """Connects to the URL of ``config``.

    Attributes:
        limits: the segment sizes by address, where larger segments were found to be lost.
    """

    def __init__(self, config: ClientConfig) -> None:
        """Raises HostError if a TLS file or the proxy of the environment is unusable."""
        self.config = config
        self._tls = TlsClient(config.tls) if config.server.scheme == "https" else None
        self.proxy = effective_proxy(config.server, config.proxy)
        self.limits = SegmentLimits()
        self._address: str | None = None  # of the newest connection

    async def open(self) -> Connection:
        """A connection like the client's, which the caller closes. Raises PeerError.

        All go to the address of the first one, as a client's upload goes to that of its download.
        """
        connection = await open_connection(
            self.config.server,
            self._tls,
            self.config.transport_mark,
            self.proxy,
            None,
            self.limits,
            None,
            self._address,
        )
        self._address = connection.remote_address
        return connection

    def note_limit(self, path_mtu: PathMtu, address: str | None, lost_bytes: int | None) -> None:
        """Record in ``path_mtu`` that large segments are lost. ``limits`` already has the size to use instead."""
        path_mtu.ok, path_mtu.address = False, address
        path_mtu.lost_bytes = path_mtu.lost_bytes or lost_bytes
        path_mtu.passing_bytes = None if address is None else self.limits.limit(address)

    async def explore(self, measured: Measured) -> bool:
        """Measure DNS, TCP, proxy and TLS, until one fails. Returns whether requests can be made."""
        url = self.config.server
        host, port = (url.host, url.port) if self.proxy is None else (self.proxy.host, self.proxy.port)
        measured.dns, measured.tcp = Dns(host), None
        await self._resolve(measured.dns, port)
        if measured.dns.error is not None:
            return False
        measured.tcp = Tcp()
        await _reach(measured.tcp, measured.dns, port, self.config.transport_mark)
        if measured.tcp.error is None and self.proxy is not None:
            try:
                (await open_connection(url, None, self.config.transport_mark, self.proxy)).close()
            except PeerError as exc:
                measured.tcp.error = str(exc)
        if measured.tcp.error is not None:
            return False
        if self._tls is None:
            return True
        measured.tls = Tls()
        await self._handshake(measured.tls)
        limited = [address for address in measured.dns.addresses if self.limits.limit(address) is not None]
        if limited:
            self.note_limit(measured.path_mtu, limited[0], None)
            await self._handshake(measured.tls)  # once more, to measure it without the wait for lost segments
        await self._versions(measured.tls)
        return measured.tls.error is None

    async def _resolve(self, dns: Dns, port: int) -> None:
        with suppress(ValueError):
            dns.addresses = [str(ip_address(dns.host))]
            return
        began = time.monotonic()
        try:
            found = await Resolver().resolve(dns.host, port)
        except PeerError as exc:
            dns.error = str(exc)
            if exc.reason == EndReason.DNS and "; check " not in dns.error:
                dns.error += "; check the name and this machine's DNS"
        else:
            dns.addresses = list(dict.fromkeys(address_text(address) for _, address in found))
        dns.ms = (time.monotonic() - began) * 1e3

    async def _handshake(self, tls: Tls) -> None:
        assert self._tls is not None, "https"
        url = self.config.server
        try:
            connection = await open_connection(url, None, self.config.transport_mark, self.proxy, None, self.limits)
            began = time.monotonic()
            with trio.fail_after(CONNECT_S):
                secured = await secure(connection, url, self._tls, self.limits, None, self.proxy)
        except PeerError as exc:
            tls.error = str(exc)
            return
        except trio.TooSlowError:
            tls.error = f"no TLS handshake with {url.authority} within {CONNECT_S:.0f} s"
            return
        tls.ms, tls.version = (time.monotonic() - began) * 1e3, secured.version
        _describe(tls, secured.certificate())
        secured.close()

    async def _versions(self, tls: Tls) -> None:
        from ..host.net.tls_versions import VERSIONS, certificate_by

        spoken: set[str] = set()

        async def try_one(version: str) -> None:
            with trio.move_on_after(VERSION_S), suppress(PeerError):
                connection = await open_connection(
                    self.config.server, None, self.config.transport_mark, self.proxy, None, self.limits
                )
                certificate = await certificate_by(
                    connection, self.config.tls, version, self.config.server.host_without_zone
                )
                if certificate is not None:
                    spoken.add(version)
                    if tls.days_left is None:
                        _describe(tls, certificate)

        async with trio.open_nursery() as nursery:
            for version in VERSIONS:
                nursery.start_soon(try_one, version)
        tls.offered = [version for version in VERSIONS if version in spoken]


async def _reach(tcp: Tcp, dns: Dns, port: int, mark: int | None) -> None:
    """Connect to up to ``MAX_ADDRESSES`` addresses, to find those that would make a client fail at random."""
    took: dict[str, float] = {}

    async def attempt(address: str) -> None:
        began = time.monotonic()
        try:
            with trio.fail_after(ADDRESS_S):
                connection = await connect(address, port, mark)
        except PeerError as exc:
            tcp.unreachable[address] = str(exc).rpartition(": ")[2]
        except trio.TooSlowError:
            tcp.unreachable[address] = os.strerror(errno.ETIMEDOUT)
        else:
            took[address] = (time.monotonic() - began) * 1e3
            connection.close()

    async with trio.open_nursery() as nursery:
        for address in dns.addresses[:MAX_ADDRESSES]:
            nursery.start_soon(partial(attempt, address))
    if took:
        tcp.address = min(took, key=lambda address: took[address])
        tcp.ms = took[tcp.address]
        tcp.no_route = [address for address, why in tcp.unreachable.items() if why.startswith(_NO_ROUTE)]
        for address in tcp.no_route:
            del tcp.unreachable[address]
    else:
        why = ", ".join(f"{address}: {reason}" for address, reason in tcp.unreachable.items())
        tcp.error = (
            f"cannot connect to {dns.host} port {port} ({why}); is the port right, and does a server listen there?"
        )
        tcp.unreachable = {}


def _describe(tls: Tls, certificate: dict[str, object]) -> None:
    """Fill in the expiry and the issuer. Untrusted input; never raises."""
    until = certificate.get("notAfter")
    if isinstance(until, str):
        with suppress(ValueError):
            tls.days_left = (ssl.cert_time_to_seconds(until) - time.time()) / _DAY_S
    issuer = certificate.get("issuer")
    if isinstance(issuer, tuple):
        fields = {key: value for part in issuer for key, value in part}
        name = fields.get("commonName") or fields.get("organizationName")
        tls.issuer = None if name is None else one_line(shorten(str(name), 60))
